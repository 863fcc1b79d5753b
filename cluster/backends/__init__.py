"""The backend interface, cluster profiles, and the local backend."""
