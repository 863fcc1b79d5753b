"""Queries about runs on Kubernetes: states, pending reasons, start estimates, `doctor`."""
