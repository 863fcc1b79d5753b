"""The Slurm backend, and a Slurm test cluster for a single machine."""
