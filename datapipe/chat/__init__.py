"""Conversations: their formats, and what of them is learnt."""
