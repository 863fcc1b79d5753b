"""Looking at runs: status, tables, plots, logs, explanations."""
