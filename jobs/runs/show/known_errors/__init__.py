"""Meanings and remedies of known errors of programs."""
