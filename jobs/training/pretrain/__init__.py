"""The pretrain job: a language model trained on a data set."""
