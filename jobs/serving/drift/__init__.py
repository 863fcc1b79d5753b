"""Detection of changes in a model's prompts, relative to its training data or to earlier prompts."""
