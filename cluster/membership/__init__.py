"""Membership of a run: sessions between agents and their coordinator, and the groups of ranks that it forms of them."""
