"""From documents to a data set: the two passes and everything between them."""
