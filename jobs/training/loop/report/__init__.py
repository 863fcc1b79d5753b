"""Report of a run on its steps: metrics, layers, samples, time, and answers to a look inside."""
