"""Job scripts, rendered by pure functions."""
