"""Sharded checkpoints: what each rank writes, the commit by a manifest, and reading at any number of ranks."""
