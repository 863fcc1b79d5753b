"""Common parts of jobs that run a user's program: environment, checkpoints, metrics, meaning of its exit."""
