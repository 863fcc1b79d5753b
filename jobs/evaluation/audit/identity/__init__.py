"""Harmless texts that mention groups of people, and the rates at which filters and plug-ins flag them."""
