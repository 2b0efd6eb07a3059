"""Figures of finished things: losses, bundles, whole runs."""
