"""Duplicate documents, exact and near."""
