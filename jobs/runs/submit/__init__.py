"""Submission of runs: configuration, code snapshot, provenance, start."""
