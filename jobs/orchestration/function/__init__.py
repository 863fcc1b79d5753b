"""The function job: a Python function of the user's, called on a cluster, with its result and its traceback brought back."""
