"""Benchmarks. Each runs both sides in one go and prints the ratio. None of them is a test."""
