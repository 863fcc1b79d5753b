"""In every pod of a run: leader election, membership, agents, replacement."""
