"""The preprocess job: make a sharded Arrow data set of tokens from raw documents."""
