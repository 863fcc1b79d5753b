"""Rollouts: what a model that learns answers itself, drawn the same by whoever draws it, and kept in a durable ledger."""
