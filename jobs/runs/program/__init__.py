"""What the jobs that run a program of the user's share: its environment, its checkpoints, what its end means."""
