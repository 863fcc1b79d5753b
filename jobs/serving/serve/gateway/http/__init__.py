"""HTTP/1.1 between clients and the gateway, and between the gateway and engines."""
