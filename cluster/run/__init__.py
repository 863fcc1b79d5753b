"""A run is a directory: its paths, its record, its events, and the fence against an old attempt."""
