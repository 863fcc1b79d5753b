"""The local backend: runs on virtual nodes of this machine, each with a detached supervisor."""
