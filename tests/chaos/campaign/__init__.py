"""A serving run under load and random faults, for as many minutes as wanted: python -m tests.chaos.campaign --help."""
