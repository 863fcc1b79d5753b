"""Keys and draws of a search space, and the searches that choose trials in it."""
