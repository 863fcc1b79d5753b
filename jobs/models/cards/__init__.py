"""Cards: what a model and a data set are, written out of a run's directory and a manifest."""
