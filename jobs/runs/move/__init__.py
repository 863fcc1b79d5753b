"""Moving a run to another cluster: final checkpoint there, missing contents here, and a new attempt."""
