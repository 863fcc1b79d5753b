"""One exchange, from the arrival of a request to the last byte of its answer, across failures of gateways and replicas."""
