"""Learning from preferences: pairs of answers, or answers with a label."""
