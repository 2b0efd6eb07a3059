"""Corpora: speech from a grammar or from sentences by synthesis, or from disk."""
