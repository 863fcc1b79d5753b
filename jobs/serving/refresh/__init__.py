"""The refresh job: retrain the served model from its feedback, and promote it through a gate and a canary."""
