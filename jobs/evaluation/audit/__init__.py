"""The audit job: preferences, memorization and refusals of a model, measured before it is trusted."""
