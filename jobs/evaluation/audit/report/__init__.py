"""Output of an audit: items, a report for programs, and one page for people."""
