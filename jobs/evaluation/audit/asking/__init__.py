"""Ask a model each question once: shared among ranks, recorded when answered, resumed after a kill."""
