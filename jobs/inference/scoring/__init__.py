"""A model of a run or a directory, opened to be asked: log-likelihoods of continuations, and seeded text."""
