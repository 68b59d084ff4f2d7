"""Benchmarks: scripts that write JSON with configuration hash, seed and commit."""
