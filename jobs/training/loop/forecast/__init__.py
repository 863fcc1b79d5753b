"""Forecasts of a training step from its configuration: memory, traffic, and time."""
