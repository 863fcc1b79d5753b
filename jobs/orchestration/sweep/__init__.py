"""The sweep job: Ray Tune decides, and each trial is a run."""
