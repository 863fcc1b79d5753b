"""A request from its arrival to the last byte of its answer, whatever dies in between."""
