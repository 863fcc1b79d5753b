"""Text: that of transformers, the same whatever is written beside it, drawn from the seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ropewalk.cluster.errors import DataError
from ropewalk.jobs.inference.scoring.decode import Decoder, Prompt, Sampling
from ropewalk.jobs.inference.scoring.generate import Generated, Writer, generate
from ropewalk.jobs.inference.scoring.open_model import OpenModel, open_model
from tests.jobs.tiny import tiny_model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenModel:
    return open_model(str(tiny_model(tmp_path_factory.mktemp("tiny") / "model")))


def prompts(number: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[int(t) for t in random.integers(32, 120, size=random.integers(1, 40))] for _ in range(number)]


def test_greedy_text_is_that_of_transformers(opened: OpenModel) -> None:
    for prompt, item in zip(prompts(6), generate(opened, prompts(6), Sampling(max_new_tokens=20)), strict=True):
        ids = torch.tensor([prompt])
        theirs = opened.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
        )
        assert list(item.tokens) == theirs[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=16), Sampling(max_new_tokens=16, temperature=1.3)])
def test_text_does_not_depend_on_what_is_written_beside(opened: OpenModel, sampling: Sampling) -> None:
    requests = [Prompt(tokens, (5, number)) for number, tokens in enumerate(prompts(18, seed=1))]
    alone = dict(Writer(opened, 1).write(requests, sampling))
    for size in (4, 16, 32):
        shuffled = np.random.default_rng(size).permutation(len(requests))
        result = dict(Writer(opened, size).write([requests[k] for k in shuffled], sampling))
        assert {int(shuffled[k]): text for k, text in result.items()} == alone


def test_a_choice_near_a_tie_is_made_again_alone(opened: OpenModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Prompt(tokens, (0, k)) for k, tokens in enumerate(prompts(6))]
    expected = dict(Writer(opened, 1).write(requests, Sampling(max_new_tokens=8)))
    counted, alone = [0], Decoder.alone

    def counting(self: Decoder, prompt: Prompt, sampling: Sampling) -> Any:
        counted[0] += 1
        return alone(self, prompt, sampling)

    monkeypatch.setattr(Decoder, "alone", counting)
    writer = Writer(opened, 6)
    assert dict(writer.write(requests, Sampling(max_new_tokens=8))) == expected
    assert counted[0] < 6
    counted[0], writer._noise = 0, 1e9
    assert dict(writer.write(requests, Sampling(max_new_tokens=8))) == expected
    assert counted[0] == 6


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bloom", "mamba", "mistral"])
def test_every_kind_of_model_writes_its_own_text(kind: str, tmp_path: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    values: dict[str, dict[str, Any]] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
        "opt": {**small, "ffn_dim": 64, "word_embed_proj_dim": 32},
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
        "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
        "mistral": {"sliding_window": 16},
    }
    model = open_model(str(tiny_model(tmp_path / kind, model_type=kind, **values[kind])))
    requests = [Prompt(tokens, (0, k)) for k, tokens in enumerate(prompts(5, seed=2))]
    result = dict(Writer(model, 5).write(requests, Sampling(max_new_tokens=8)))
    for number, prompt in enumerate(requests):
        ids = torch.tensor([prompt.tokens])
        theirs = model.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert list(result[number].tokens) == theirs[0, len(prompt.tokens) :].tolist()


def test_draws_are_those_of_the_softmax_and_of_the_seed(opened: OpenModel) -> None:
    prompt = prompts(1)[0]
    drawn = list(generate(opened, [prompt] * 400, Sampling(max_new_tokens=1, temperature=8.0), seed=3))
    assert drawn[:50] == list(generate(opened, [prompt] * 50, Sampling(max_new_tokens=1, temperature=8.0), seed=3))
    with torch.no_grad():
        shares = (opened.model(torch.tensor([prompt])).logits[0, -1] / 8.0).softmax(0)
    top = int(shares.argmax())
    observed = sum(completion.tokens[0] == top for completion in drawn) / 400
    assert abs(observed - float(shares[top])) < 4 * (float(shares[top]) / 400) ** 0.5
    few = list(generate(opened, [prompt] * 50, Sampling(max_new_tokens=1, temperature=8.0, top_k=2), seed=3))
    assert {entry.tokens[0] for entry in few} <= {int(t) for t in shares.topk(2).indices}
    item = list(generate(opened, [prompt] * 20, Sampling(max_new_tokens=1, temperature=8.0, top_p=0.001), seed=3))
    assert {each.tokens[0] for each in item} == {top}


def test_it_ends_at_a_stop_and_before_it(opened: OpenModel) -> None:
    (free,) = generate(opened, [prompts(1)[0]], Sampling(max_new_tokens=12))
    stop = free.text[4:6]
    (result,) = generate(opened, [prompts(1)[0]], Sampling(max_new_tokens=12, stop=(stop,)))
    assert isinstance(result, Generated)
    assert (result.ended, result.text) == ("stop", free.text[: free.text.index(stop)])


def test_a_stop_may_be_a_special_token_that_ends_no_text(opened: OpenModel, tmp_path: Path) -> None:
    special = open_model(str(tiny_model(tmp_path / "special")))
    (free,) = generate(opened, [prompts(1)[0]], Sampling(max_new_tokens=12))
    letters = [chr(token) if 32 < token < 127 else "" for token in free.tokens]
    position = next(k for k in range(2, 12) if letters[k] and letters[k - 1] and free.tokens.index(free.tokens[k]) == k)
    special.tokenizer.add_special_tokens({"additional_special_tokens": [letters[position]]})
    (unstopped,) = generate(special, [prompts(1)[0]], Sampling(max_new_tokens=12))
    assert unstopped.tokens == free.tokens
    assert letters[position] not in unstopped.text, "it is not shown"
    before = special.tokenizer.decode(free.tokens[:position])
    for stop, text in ((letters[position], before), (letters[position - 1] + letters[position], before[:-1])):
        (result,) = generate(special, [prompts(1)[0]], Sampling(max_new_tokens=12, stop=("never", stop)))
        assert (result.ended, result.text) == ("stop", text)
        assert result.tokens == free.tokens[: position + 1]


def test_prompts_that_do_not_fit(opened: OpenModel) -> None:
    long = [65 + i % 20 for i in range(400)]
    (result,) = generate(opened, [long], Sampling(max_new_tokens=10))
    (end,) = generate(opened, [long[-246:]], Sampling(max_new_tokens=10))
    assert result == end
    with pytest.raises(DataError, match="leave no room"):
        list(generate(opened, [[1]], Sampling(max_new_tokens=256)))
    with pytest.raises(DataError, match="empty"):
        list(generate(opened, [[]], Sampling()))
