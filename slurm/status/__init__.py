"""What Slurm says of runs, and when they may start."""
