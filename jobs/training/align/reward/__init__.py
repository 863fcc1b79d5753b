"""Reward models: a score for an answer, learnt from pairs."""
