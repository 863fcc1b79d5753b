"""Near-duplicates across all shards: MinHash bands that meet on disk, clusters by partitioned stars, pairs by true Jaccard."""
