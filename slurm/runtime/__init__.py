"""On the nodes of a job: coordinator, allocation, watchdog, preemption."""
