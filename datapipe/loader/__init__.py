"""From shards to batches: order, mixture, cache, prefetching."""
