"""The operators on a CPU."""
