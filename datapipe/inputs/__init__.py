"""Input files: list them, cut them into units, read their documents."""
