"""What a backend is, the clusters that a user describes, and the backend of this machine."""
