"""What Kubernetes says of runs, why they wait, when they may start."""
