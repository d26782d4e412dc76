"""Benchmarks of ela-probe: `python -m benchmarks --help`."""
