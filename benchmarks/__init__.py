"""Benchmarks, a script per published figure: each prints a table, and JSON with `--json`. See `docs/benchmarks.md`."""
