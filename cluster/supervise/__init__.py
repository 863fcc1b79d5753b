"""A run's attempts: their budgets, the nodes of an allocation, agents, outcomes."""
