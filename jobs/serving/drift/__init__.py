"""Whether what a model is asked differs from what it learnt from, or from what it was asked before."""
