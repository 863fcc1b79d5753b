"""Kubernetes objects, rendered by pure functions."""
