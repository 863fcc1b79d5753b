"""Processes: signals, forking, and the end of all descendants."""
