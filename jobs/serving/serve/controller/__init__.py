"""The controller: which versions run, which of them get the traffic, and what the gateway is told."""
