"""Documents masked from each other: a packed row computes what its documents compute alone."""

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, masking_utils

from ropewalk.datapipe.loader.loader import Source as DataSet
from ropewalk.datapipe.loader.loader import TokenLoader
from ropewalk.jobs.training.loop.documents import document_positions
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.jobs.training.loop.source import TokenSource
from tests.jobs.corpus import make_dataset

START = 7  # the token that begins a document
SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "tie_word_embeddings": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8},
    "mistral": {"sliding_window": 6},  # documents are longer than the window
    "phi3": {},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
}
TOLERANCE = {"gemma2": 1e-6}  # its softmax is in fp32


def test_positions_start_anew_in_each_document() -> None:
    tokens = torch.tensor([[1, 2, 7, 3, 7, 7, 5], [7, 1, 1, 1, 1, 1, 7]])
    assert document_positions(tokens, START).tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 0]]


def loss_and_gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """The summed loss, and the gradient of each parameter."""
    model.zero_grad()
    losses = [NextToken()(model, batch).loss_sum for batch in batches]
    for loss in losses:
        loss.backward()
    return [torch.stack(losses).sum().detach(), *(parameter.grad.clone() for parameter in model.parameters())]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_row_equals_its_documents(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHAPE, **FAMILIES[family]), dtype=torch.float64)
    tokens = torch.randint(8, 64, (2, 41))
    tokens[0, [3, 14, 15, 30]] = tokens[1, [0, 22]] = START
    packed = {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
    packed["position_ids"] = document_positions(packed["input_ids"], START)
    begins = [[*row.nonzero()[:, 0].tolist(), 40] for row in packed["position_ids"] == 0]
    documents = [
        {name: packed[name][row : row + 1, begin:end] for name in ("input_ids", "labels")}
        for row, borders in enumerate(begins)
        for begin, end in pairwise(borders)
    ]
    assert len(documents) == 7
    together, alone = loss_and_gradients(model, [packed]), loss_and_gradients(model, documents)
    for packed_values, values in zip(together, alone, strict=True):
        difference = float((packed_values - values).abs().max() / values.abs().max())
        assert difference < TOLERANCE.get(family, 1e-10)
    whole = loss_and_gradients(model, [{name: packed[name] for name in ("input_ids", "labels")}])
    assert abs(whole[0] - together[0]) > 1e-3, "without the mask it differs"


def test_a_source_gives_positions_to_samples_and_fillers(tmp_path: Path) -> None:
    loader = TokenLoader([DataSet(str(make_dataset(tmp_path / "data")))], seq_len=32, seed=0)
    end = loader.manifests[0].tokenizer.end_of_document
    plain, separate = TokenSource(loader), TokenSource(loader, document_start=end)
    batch = separate.read(range(40))
    assert torch.equal(batch["input_ids"], plain.read(range(40))["input_ids"])
    assert torch.equal(batch["labels"], plain.read(range(40))["labels"]), "every token stays a label"
    assert (batch["position_ids"] == 0)[:, 1:].any()
    assert torch.equal((batch["position_ids"] == 0)[:, 1:], (batch["input_ids"] == end)[:, 1:])
    assert separate.filler().keys() == batch.keys()
    assert plain.filler().keys() == {"input_ids", "labels"}


def test_transformers_finds_documents_by_the_function_that_is_replaced() -> None:
    assert list(inspect.signature(masking_utils.find_packed_sequence_indices).parameters) == ["position_ids"]
    uses = inspect.getsource(masking_utils).count("= find_packed_sequence_indices(position_ids)")
    assert uses == 1
