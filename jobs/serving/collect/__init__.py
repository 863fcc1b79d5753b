"""The collect job: training data from the feedback of a serving run."""
