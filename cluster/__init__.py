"""Nouns and plumbing: job, run, backend, agent, local backend, monitor."""
