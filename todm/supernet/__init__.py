"""Elastic training for any model: the space, elastic layers, the sandwich step, extraction."""
