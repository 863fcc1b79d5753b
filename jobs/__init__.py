"""What a user submits: one module a job, composed from the floors below."""
