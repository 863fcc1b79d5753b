"""The `sweep` job: hyperparameter search by Ray Tune, with each trial as a run."""
