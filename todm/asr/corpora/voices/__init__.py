"""Voices: engines that speak text, one a file, and the shares in which they speak a corpus."""
