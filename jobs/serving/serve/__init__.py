"""A model served: replicas that answer, and the gateway in front of them that loses no request."""
