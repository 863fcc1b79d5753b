"""The evaluate job: a model scored on held-out text."""
