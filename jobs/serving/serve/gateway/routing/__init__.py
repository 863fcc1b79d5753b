"""Choice of the replica for a request, and queues of waiting requests."""
