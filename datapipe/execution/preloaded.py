"""Imported by the server that worker processes are forked from: the worker's modules, and what they load at their first use."""

import gc

from ropewalk.datapipe.inputs.text_hash import text_hashes
from ropewalk.datapipe.passes.worker import Worker
from ropewalk.datapipe.text.document import Document
from ropewalk.datapipe.text.document_batch import DocumentBatch

__all__ = ["Worker"]

text_hashes(DocumentBatch.of([Document(0, 1, "id", "source", "a first text")]))
gc.freeze()  # so that the processes share the memory of all this
