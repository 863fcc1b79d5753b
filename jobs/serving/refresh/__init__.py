"""The refresh job: the loop from feedback back to the model that serves, through a gate and a canary."""
