"""The Slurm backend: one agent a node of an allocation; and a real Slurm cluster on one machine to test it on."""
