"""Preference training: pairs of answers, or labelled answers."""
