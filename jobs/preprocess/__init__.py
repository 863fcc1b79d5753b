"""The preprocess job: raw documents become a sharded Arrow data set of tokens."""
