"""Mirroring of run files into Weights & Biases and other trackers, by a sidecar of the run or from a login node."""
