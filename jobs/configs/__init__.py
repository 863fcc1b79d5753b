"""Complete runs, one a file."""
