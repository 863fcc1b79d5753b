"""Detection of texts that contain evaluation items, by word n-grams in which one word may differ."""
