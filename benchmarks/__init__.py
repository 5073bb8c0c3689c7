"""Benchmarks: meshq beside a raw loop that moves the same bytes with the same syncs and no logic."""
