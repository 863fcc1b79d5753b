"""What outlives a gateway: its sockets and a journal of open exchanges, held by a process that does nothing else."""
