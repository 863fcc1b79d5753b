"""The `command` job: run any program of the user's."""
