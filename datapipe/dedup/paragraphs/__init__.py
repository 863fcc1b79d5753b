"""Removal of paragraphs or lines that an earlier document has, exact and over all documents."""
