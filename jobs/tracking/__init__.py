"""Metrics of a run, and their mirror in Weights & Biases."""
