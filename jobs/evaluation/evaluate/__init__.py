"""The evaluate job: scores of a model on held-out text and on tasks."""
