"""Execution of runs: run directories, supervisors, agents, engines and scheduler backends."""
