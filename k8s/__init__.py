"""The backend for Kubernetes clusters; k8s/README.md has the map."""
