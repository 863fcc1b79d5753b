"""Who does the work of a data set: Ray actors or the tasks of a Slurm array."""
