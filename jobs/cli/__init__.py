"""The command line `ropewalk`: the only part that prints."""
