"""Copies of the training state in the memory of nodes: their files, and the connections over which nodes exchange them."""
