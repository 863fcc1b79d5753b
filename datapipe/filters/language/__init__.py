"""Language identification with the model of py3langid."""
