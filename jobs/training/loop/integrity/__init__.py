"""Checks of a training for silent corruption: the state of copies of the model, at rest, in memory, and the ranks to blame."""
