"""Compression: passes over any module tree, each accounting for every layer. See README.md here."""
