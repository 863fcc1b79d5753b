"""The objects that kubectl would see; pure."""
