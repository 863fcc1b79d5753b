"""The `pipeline` job: several jobs with dependencies, each a run of its own."""
