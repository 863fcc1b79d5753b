"""The batch script and what stands in it; pure."""
