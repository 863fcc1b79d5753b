"""Division of model, optimizer state and sample order among ranks."""
