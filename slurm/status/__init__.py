"""Queries about runs on Slurm: states, start estimates, limits, `doctor`."""
