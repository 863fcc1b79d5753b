"""The command line: words become calls; the only place that prints."""
