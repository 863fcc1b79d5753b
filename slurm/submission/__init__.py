"""Submission of a run as exactly one job."""
