"""Models opened for inference: scoring and generation, serving engines, GGUF."""
