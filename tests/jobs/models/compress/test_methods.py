"""Methods compose in the order given, or are refused before anything starts, with the reason."""

from typing import Any

import pytest
from pydantic import ValidationError

from ropewalk.jobs.models.compress.config import CompressConfig
from ropewalk.jobs.models.compress.methods import Method, check_composition, label_of

RECOVER = {"recover": {"steps": 3}}
TWO_OF_FOUR = {"wanda": {"pattern": "2:4"}}
WIDTH = {"prune": {"width": 0.75}}


def methods(*arguments: Any) -> list[Method]:
    return [Method.model_validate(word) for word in arguments]


@pytest.mark.parametrize(
    ("message", "label"),
    [
        (["wanda"], "wanda-0.5"),
        ([{"wanda": None}, "gguf"], "wanda-0.5+gguf-q4_k"),
        ([TWO_OF_FOUR, {"gguf": {"type": "Q8_0"}}], "wanda-2of4+gguf-q8_0"),
        ([TWO_OF_FOUR, {"compressed_tensors": {"type": "int4"}}], "wanda-2of4+compressed_tensors-int4"),
        ([WIDTH, {"magnitude": {"sparsity": 0.3}}, RECOVER, "torchao"], "width0.75+magnitude-0.3+recover3+torchao-int8"),
        ([{"prune": {"layers": 24}}, RECOVER, {"cast": {}}], "layers24+recover3+bfloat16"),
    ],
)
def test_these_follow_each_other(message: list[Any], label: str) -> None:
    check_composition(methods(*message))
    assert label_of(methods(*message)) == label


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ([TWO_OF_FOUR, "gguf"], "2:4 and then gguf Q4_K: its blocks cannot represent zero"),
        ([TWO_OF_FOUR, {"gguf": {"type": "IQ4_NL"}}], "cannot represent zero"),
        (["gguf", WIDTH], "prune after gguf: the output of gguf is final; put prune before it"),
        (["torchao", "gguf"], "gguf after torchao"),
        (["cast", "wanda"], "wanda after cast"),
        (["wanda", "magnitude"], "magnitude after wanda: only one sparse method"),
        (["wanda", WIDTH], "prune after a sparse method"),
        ([{"compressed_tensors": {"gptq": True}}], "gptq: int8 has one scale per row"),
        ([RECOVER], "recover: nothing was pruned before it"),
        (
            ["wanda", {"compressed_tensors": {"type": "int4", "gptq": True}}],
            "compressed_tensors.gptq after wanda: compensation would fill",
        ),
        (["wanda", {"gguf": {"type": "Q5_0", "gptq": True}}], "gguf.gptq after wanda"),
        (["wanda", "compressed_tensors", RECOVER], "recover after compressed_tensors"),
    ],
)
def test_these_do_not(message: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_composition(methods(*message))
    with pytest.raises(ValidationError, match=reason):
        CompressConfig.model_validate({"model": "x", "data": "d", "variants": {"mine": message}})


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "nothing to do; name `methods`"),
        ({"methods": ["quantise"]}, "quantise"),
        ({"methods": [{"wanda": {}, "gguf": {}}]}, "name one method each"),
        ({"methods": [{"gguf": {"type": "Q9"}}]}, "there is no type 'Q9'; types: F32"),
        ({"methods": [{"wanda": {"sparsity": 0.4, "pattern": "2:4"}}]}, "set sparsity or pattern, not both"),
        ({"variants": {"dense": ["wanda"]}}, "'dense' is not a valid name"),
        ({"variants": {"../up": ["wanda"]}}, "is not a valid name"),
        ({"variants": {"nothing": []}}, "nothing has no method"),
        ({"methods": [{"prune": {"width": 0.5, "calibration": {"sequences": 3}}}]}, "set `calibration` of the job"),
    ],
)
def test_mistakes_are_told(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CompressConfig.model_validate({"model": "x", "data": "d", **values})
