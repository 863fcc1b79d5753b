"""Have transformers and pydantic compute now what they compute once a process, for processes that are forked from this one."""

from collections.abc import Iterator

from pydantic import BaseModel
from transformers import conversion_mapping


def _subclasses(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for each in model.__subclasses__():
        yield each
        yield from _subclasses(each)


conversion_mapping.get_checkpoint_conversion_mapping("llama")
for model in [*_subclasses(BaseModel)]:
    if model.__module__.startswith("ropewalk."):  # their validators wait for the first use
        model.model_rebuild(raise_errors=False)
