"""Submission of runs: preflight checks, staging, creation of objects, held Jobs."""
