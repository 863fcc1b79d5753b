"""Scoring and generation with the model of a run or a directory: log-likelihoods and seeded text."""
