"""Results of runs: metrics, scores with their evidence, comparisons, gates, tables and plots."""
