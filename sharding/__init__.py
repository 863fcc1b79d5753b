"""Model, optimizer state and sample order, split over ranks."""
