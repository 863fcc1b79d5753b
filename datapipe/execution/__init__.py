"""Where the tasks of a data set run: on Ray actors, or as the tasks of an array."""
