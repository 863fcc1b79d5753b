"""Notification of the owner of a run: causes, an outbox in the run, and receivers."""
