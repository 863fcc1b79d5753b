"""Runs on two clusters: a move from one to the other, and the choice of the one where a run starts."""
