"""The scripts that Slurm is given, rendered by pure functions."""
