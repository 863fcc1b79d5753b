"""The serve job: replicas of a model, and a gateway in front of them that loses no request."""
