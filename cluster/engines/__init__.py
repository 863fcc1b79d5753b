"""Engines that an agent runs: ranks of a training group, a Ray cluster, or a single process."""
