"""Execution of a data set's tasks: on Ray actors, or as array tasks."""
