"""Simulated sweeps: recorded learning curves in place of runs, under a virtual clock."""
