"""What the benchmarks share: environments, processes, limits, and the CSV with its tables and figures."""
