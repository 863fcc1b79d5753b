"""Tasks as lm-eval defines them: loaded, checked, scored; whoever asks a model with them is another."""
