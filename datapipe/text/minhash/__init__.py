"""MinHash of documents: signatures in bands, by which near-duplicates meet."""
