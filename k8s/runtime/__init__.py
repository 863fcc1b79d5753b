"""Code that runs in every pod of a run: leader election, membership, agents, pod replacement."""
