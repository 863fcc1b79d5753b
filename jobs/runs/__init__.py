"""What one does with runs: submit, follow, show, explain, cancel."""
