"""Decoding and its figures: searches, word error rate, latency, evaluation."""
