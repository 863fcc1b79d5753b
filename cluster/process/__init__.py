"""Operating-system processes: signals, forking, ports, scratch folders, termination of process trees."""
