"""Deduplication over all documents: equal texts, equal ids, near-duplicates, repeated paragraphs."""
