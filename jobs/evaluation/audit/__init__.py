"""The audit job: what a model prefers, repeats and refuses, measured before it is trusted."""
