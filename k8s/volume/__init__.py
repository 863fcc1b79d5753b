"""Access to a volume that this machine does not mount, through a pod."""
