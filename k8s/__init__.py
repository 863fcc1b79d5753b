"""Kubernetes: the same job file, the same promises."""
