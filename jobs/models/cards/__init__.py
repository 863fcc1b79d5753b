"""Cards of models and data sets, written from a run's directory and a manifest."""
