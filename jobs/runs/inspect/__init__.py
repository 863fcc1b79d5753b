"""Looks into live runs: stacks of all processes, a profile of some steps, memory by kind."""
