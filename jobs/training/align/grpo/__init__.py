"""GRPO: groups of answers are drawn from the policy, rewarded, kept in a durable ledger, and learnt from."""
