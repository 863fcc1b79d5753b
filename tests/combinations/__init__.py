"""Every pair of training options: equal on four ranks and on one, or refused before anything starts."""
