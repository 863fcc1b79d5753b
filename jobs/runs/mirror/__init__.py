"""A run's files mirrored into Weights & Biases and other trackers: beside the run, or from a login node."""
