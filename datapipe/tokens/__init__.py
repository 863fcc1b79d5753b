"""Tokenizers, and pass 2: from documents to tokens in Arrow shards."""
