"""Serving a model and the way back: endpoints, captured feedback, collections, refresh rounds, drift."""
