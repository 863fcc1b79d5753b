"""Jobs that start other work: sweeps, pipelines, users' programs and functions."""
