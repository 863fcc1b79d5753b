"""Ask a model each question once: shared among ranks, recorded as answered, resumed where an earlier attempt was killed."""
