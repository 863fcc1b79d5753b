"""Near-duplicates over all documents: candidates by MinHash bands, clusters by connected components, verified by Jaccard."""
