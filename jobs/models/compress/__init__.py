"""Smaller and faster variants of a model, each measured in the engine that serves it, in one table."""
