"""Graphs in, files out: lowering, int8, offline forms, checks against real runtimes, the bundle."""
