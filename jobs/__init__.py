"""Jobs that users submit, and the command line."""
