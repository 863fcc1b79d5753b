"""Data pipeline: documents to shards to batches."""
