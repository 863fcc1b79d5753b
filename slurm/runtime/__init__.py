"""Code that runs on the nodes of a Slurm job: coordinator, allocation, watchdog, preemption."""
