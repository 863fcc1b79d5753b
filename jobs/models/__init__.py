"""Models as products: the registry, model and data cards, compression."""
