"""The `function` job: call a Python function on a cluster and bring back its result or traceback."""
