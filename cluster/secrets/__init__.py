"""Secrets of users: where a cluster keeps them, how a run gets them, and how they are masked in its output."""
