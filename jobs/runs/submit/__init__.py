"""Submission: configuration, code snapshot, provenance, start."""
