"""What an agent runs: ranks of a training group, a Ray cluster, or one process."""
