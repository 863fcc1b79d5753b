"""Measures of an audit: each lists its questions and judges by the recorded answers alone."""
