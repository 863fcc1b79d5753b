"""A volume that this machine does not mount, read and written through a pod."""
