"""Rewards of answers: functions by name, called in separate processes that may hang or die."""
