"""One file for each command of `python -m benchmarks`, with the name of the command."""
