"""From documents to a data set: the plan, the two passes, and the stages between them."""
