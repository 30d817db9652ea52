"""The tests, importable so that benchmarks can share their tools."""
