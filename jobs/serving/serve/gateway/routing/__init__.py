"""Which replica answers a request, and which requests wait."""
