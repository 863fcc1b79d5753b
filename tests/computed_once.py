"""Have transformers compute now what it computes once a process, so that processes which are forked from this one need not."""

from transformers import conversion_mapping

conversion_mapping.get_checkpoint_conversion_mapping("llama")
