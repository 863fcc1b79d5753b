"""Stereotype suites: files in the formats of their authors, read as pairs of sentences."""
