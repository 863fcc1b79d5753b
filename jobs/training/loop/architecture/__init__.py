"""A model without its weights: configuration, skeleton, and the record that a run keeps of it."""
