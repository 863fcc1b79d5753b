"""The reference engine: the model of transformers, token by token, on one thread."""
