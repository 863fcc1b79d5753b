"""The Slurm backend, and a real Slurm cluster on one machine to test it on."""
