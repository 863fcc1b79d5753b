"""The trials of a sweep: their runs, followed in Ray Tune's actors."""
