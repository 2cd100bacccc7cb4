"""Benchmarks: each runs both sides in one go and prints ratios. None of them is a test."""
