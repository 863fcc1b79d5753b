"""What is measured: each measure lists its questions, and judges by their recorded answers alone."""
