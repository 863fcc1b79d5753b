"""Smaller models cut out of trained ones: what counts least is found on calibration text, and left out."""
