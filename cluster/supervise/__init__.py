"""From a run to its attempts: budgets, the nodes of an allocation, agents, outcomes."""
