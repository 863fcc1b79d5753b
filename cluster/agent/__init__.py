"""The agent: one process a node, which runs an engine, watches it and the machine, and hands on stops."""
