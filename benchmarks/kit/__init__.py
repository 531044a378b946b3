"""Benchmark kit: swarms of real processes, engines to compare, traffic, tables and pictures."""
