"""Processes: signals, forking, ports, scratch folders, and killing all descendants."""
