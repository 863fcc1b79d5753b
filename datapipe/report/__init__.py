"""What was kept, dropped and changed, and why, as a page and as JSON."""
