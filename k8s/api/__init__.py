"""Clients of the API server, for use outside the cluster and in pods."""
