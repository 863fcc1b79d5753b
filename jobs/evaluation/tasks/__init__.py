"""Tasks in lm-eval's format: load, validate, score. The callers run the model."""
