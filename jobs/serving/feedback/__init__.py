"""Capture of an endpoint's requests, answers and ratings: masked, stored, and read back as training data."""
