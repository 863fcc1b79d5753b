"""What an endpoint was asked and what people thought of its answers: captured, masked, read again as training data."""
