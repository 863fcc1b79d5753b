"""The align job: train a model on preferences or rewards."""
