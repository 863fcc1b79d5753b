"""Scores with their evidence: value, standard error, n and hash; comparisons of them; gates."""
