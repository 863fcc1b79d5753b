"""The documents of the data sets that a model was trained on, shard by shard, each verified."""
