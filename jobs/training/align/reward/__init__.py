"""Reward models: a score for an answer, trained on pairs."""
