"""How the API server is reached, from the laptop and from a pod."""
