"""From a batch to new weights: one step, its optimizers, and the state that they change."""
