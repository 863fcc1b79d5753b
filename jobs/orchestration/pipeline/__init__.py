"""The pipeline job: several jobs, some of which need others; each is a run of its own."""
