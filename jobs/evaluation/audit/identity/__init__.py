"""Harmless texts that mention groups of people, and how often filters and plug-ins hold them against these."""
