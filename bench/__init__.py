"""Benchmarks: `make bench`.  Figures are ratios to llama.cpp in one run on one machine."""
