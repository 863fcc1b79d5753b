"""Measurement of models: tasks, held-out evaluation, audits."""
