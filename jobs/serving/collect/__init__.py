"""The collect job: what a serving run has captured, as conversations and preferences that are learnt from."""
