"""Models in runs: find them, their versions, inputs, evaluations and gates."""
