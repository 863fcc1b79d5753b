"""Supervision of a run: attempts, retry budgets, the allocation's nodes, agents, outcomes."""
