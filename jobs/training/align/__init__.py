"""The align job: a model learns from preferences, or from rewards."""
