"""What an audit writes: items, a report for programs, and one page for people."""
