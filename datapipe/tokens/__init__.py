"""From documents to tokens in Arrow shards."""
