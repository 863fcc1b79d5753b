"""Commands for clusters that are reached through ssh: what they send, and the runs that are known to be there."""
