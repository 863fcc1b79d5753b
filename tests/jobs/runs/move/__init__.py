"""Runs that move to another cluster."""
