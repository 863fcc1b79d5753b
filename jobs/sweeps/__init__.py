"""Sweeps: Ray Tune decides, a backend carries; a trial is a run."""
