"""The backend for Kubernetes clusters; see k8s/README.md."""
