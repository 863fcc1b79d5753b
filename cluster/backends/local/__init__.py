"""The local backend: virtual nodes on this machine, each with a supervisor that outlives the command."""
