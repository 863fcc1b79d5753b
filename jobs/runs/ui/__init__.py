"""A local page about runs, made from their files: list, one run, several runs together."""
