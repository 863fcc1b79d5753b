"""MinHash of documents: band keys that make near-duplicates candidates of each other."""
