"""Weights of a model: drawn, read from a directory, a run or a checkpoint, adapted, and written."""
