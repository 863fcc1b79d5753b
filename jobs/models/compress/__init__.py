"""Smaller and faster models, each measured in the engine that serves it, in one table."""
