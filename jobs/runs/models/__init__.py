"""Models of runs: search, registered versions, inputs and outputs, evaluations, gates."""
