"""The command job: any program, with the promises of a run."""
