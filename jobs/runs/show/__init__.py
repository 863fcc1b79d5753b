"""Display of runs: status, tables, plots, logs, explanations."""
