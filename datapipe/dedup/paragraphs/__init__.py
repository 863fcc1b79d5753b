"""Paragraphs or lines that an earlier document has too, cut out of texts: exact, over all documents, by a shuffle on disk."""
