"""Published code that benchmarks compare with: where it is, and how its networks are built."""
