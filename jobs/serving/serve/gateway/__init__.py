"""The gateway, an endpoint's single address: accepts requests, selects replicas, forwards answers, continues broken streams."""
