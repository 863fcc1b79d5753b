"""The agent: one process per node that runs an engine, monitors it and the machine, and forwards stops."""
