"""Results a run reports: metrics, scores with their evidence, comparisons, gates."""
