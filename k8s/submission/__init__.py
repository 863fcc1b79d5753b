"""Before a run starts: preflight, staging, creating, holding back."""
