"""Pruning: smaller models cut out of trained ones, by scores on calibration text."""
