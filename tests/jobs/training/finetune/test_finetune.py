"""Finetuning: exact on any number of ranks, packed or not, killed or not; only what the assistant says is learnt."""

import json
import random
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.run.directory import RunDir
from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.chat.dataset import ChatSet
from ropewalk.jobs.results.readable import read_table
from ropewalk.jobs.training.finetune.source import ConversationSource
from ropewalk.jobs.training.loop.objective import NextToken
from ropewalk.sharding.checkpoints.layout import complete_steps
from tests.datapipe.chat.tokenizers import WORDS
from tests.jobs.launch import equal, events, launch, log_of, losses, start, weights
from tests.jobs.training.finetune.chats import LORA, chats, finetune_config, make_base, make_run, write_lines


def plain_losses(base: Path, run: RunDir, results: dict[str, Any], *, packed: bool) -> list[float]:
    """Losses of the same steps by transformers and torch alone, every conversation by itself."""
    config = run.record["config"]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, betas=(0.9, 0.999))
    source = ConversationSource(ChatSet(results["data"], "train"), seq_len=96, seed=0, packed=packed)
    size, values = config["batch"]["global_batch"], []
    for step in range(config["steps"]):
        total, count = torch.zeros(()), 0
        for position in range(step * size, (step + 1) * size):
            for number in source.packs[position]:
                tokens, learnt = source.conversations[source.index_of(number)]
                ids = torch.from_numpy(tokens.astype("int64"))
                labels = ids[1:].masked_fill(~torch.from_numpy(learnt[1:].copy()), -100)
                total = total + F.cross_entropy(model(ids[None, :-1]).logits[0], labels, reduction="sum")
                count += int((labels != -100).sum())
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = run.record["config"]["optim"]["lr"] * min(1.0, (step + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
        values.append(total.item() / count)
    return values


@pytest.mark.parametrize(("packed", "worlds"), [(True, (1, 3)), (False, (2,))], ids=["packed", "not packed"])
def test_it_is_plain_torch_at_any_number_of_ranks(
    base: Path, data: Path, root: Path, packed: bool, worlds: tuple[int, ...]
) -> None:
    optim = {"lr": 3e-3, "warmup_steps": 2, "schedule": "constant"}
    config = finetune_config(base, data, packing=packed, optim=optim, steps=3, checkpoint={"every_steps": 100})
    expected = None
    for ranks in worlds:
        run = make_run(root, config)
        results = launch(run, ranks)
        expected = expected or plain_losses(base, run, results, packed=packed)
        assert list(losses(run).values()) == pytest.approx(expected, rel=1e-6)
    assert results["conversations"] == 150
    assert results["reasons"] == {"invalid_json": 1, "no_messages": 1}
    if packed:
        assert results["positions_used"] >= 0.9
    assert len(events(run, "prepared")) == 0, "runs of equal keys share what was prepared"
    assert "validation/bits_per_byte" in results
    assert results["validation/gap"] == pytest.approx(results["validation/loss"] - sum(losses(run).values()) / 3)


def test_the_mask_is_that_of_transformers_and_a_page_shows_it(base: Path, data: Path, root: Path) -> None:
    marked = AutoTokenizer.from_pretrained(base)
    run = make_run(root, finetune_config(base, data, steps=1))
    results = launch(run, 1)
    train = ChatSet(results["data"], "train")
    records = {conversation["id"]: conversation for conversation in chats(150)}
    for index in range(10):
        ids, learnt = train[index]
        messages = records[train.name(index)]["messages"]
        assert ids.tolist() == marked.apply_chat_template(messages)["input_ids"]
        answer = marked.decode(ids[learnt])
        assert answer == "".join(f"{message['content']}<|im_end|>" for message in messages if message["role"] == "assistant")
    page = (run.path / "samples.html").read_text()
    assert page.count("<pre>") == 11, "ten conversations and the settings"
    table = read_table(run.path / "tables/chats.json")
    assert table is not None
    name, tokens, num_learnt, read, learnt_text = table.rows[0]
    last = [message["content"] for message in records[name]["messages"] if message["role"] == "assistant"][-1]
    assert learnt_text.endswith(f"{last}<|im_end|>")
    assert "<|im_start|>user" in read
    assert 0 < num_learnt < tokens
    assert "&lt;|im_start|&gt;user" in page
    assert "<mark>" in page
    assert f"<title>{run.id} · Trained tokens</title>" in page


def test_packing_is_checked_on_the_weights_of_another_run(base: Path, data: Path, root: Path) -> None:
    donor = make_run(root, finetune_config(base, data, steps=2))
    launch(donor, 1)
    taker = make_run(root, finetune_config(base, data, steps=3, start_from={"run": donor.id}))
    launch(taker, 1)
    assert list(losses(taker)) == [3]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="full"),
        pytest.param({"lora": {**LORA, "dropout": 0.1}, "neftune": 5.0}, id="lora"),
    ],
)
@pytest.mark.soak("make test kills finetunings in loop/test_lora.py and in the test of the mean of the weights")
def test_killed_and_resumed_is_bit_identical(base: Path, data: Path, root: Path, options: dict[str, Any]) -> None:
    config = finetune_config(base, data, **options, steps=5, checkpoint={"every_steps": 2})
    whole, parted = make_run(root, config), make_run(root, config)
    launch(whole, 2)
    group = start(parted, 2)
    group.until(lambda: 3 in losses(parted) and bool(events(parted, "checkpoint")))
    group.kill()
    other = RunDir(shutil.copytree(parted.path, parted.path.with_name(f"{parted.id}-other")))
    launch(parted, 2)
    assert losses(parted) == losses(whole)
    assert equal(weights(parted), weights(whole))
    if not options:
        launch(other, 3)
        assert losses(other) == pytest.approx(losses(whole), rel=1e-6)


def test_no_gradient_crosses_from_one_conversation_into_another(base: Path, data: Path, root: Path) -> None:
    run = make_run(root, finetune_config(base, data, steps=1))
    source = ConversationSource(ChatSet(launch(run, 1)["data"], "train"), seq_len=96, seed=0, packed=True)
    position = next(p for p in range(len(source.packs)) if len(source.packs[p]) >= 3)
    batch = source.read([position])
    starts = (batch["position_ids"][0] == 0).nonzero()[:, 0].tolist()
    labels = batch["labels"].clone()
    labels[0, : starts[1]] = -100
    labels[0, starts[2] :] = -100
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    observed: list[torch.Tensor] = []

    def remember(module: Any, inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:  # not in the check of the head, at the first use of a model
            output.retain_grad()
            observed.append(output)

    model.get_input_embeddings().register_forward_hook(remember)
    NextToken()(model, {**batch, "labels": labels}).loss_sum.backward()
    reached = observed[0].grad[0].abs().sum(dim=1)  # type: ignore[index]
    assert reached[: starts[1]].eq(0).all()
    assert reached[starts[2] :].eq(0).all()
    assert reached[starts[1] : starts[2]].gt(0).any()


def test_added_tokens_grow_the_embeddings(data: Path, root: Path, tmp_path: Path) -> None:
    bare = make_base(tmp_path / "bare", template=None)
    run = make_run(root, finetune_config(bare, data, chat={"template": "chatml"}, steps=1))
    launch(run, 2)
    from ropewalk.jobs.training.loop.weights.export import export

    export(run, tmp_path / "exported")
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert model.config.vocab_size == len(tokenizer) == 323
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    request = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert request == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # what peft 0.21 asks of v5
@pytest.mark.parametrize(
    "tied",
    [True, pytest.param(False, marks=pytest.mark.soak("another run of two ranks; make test runs tied embeddings"))],
    ids=["tied", "untied"],
)
def test_an_adapter_learns_the_embeddings_of_added_tokens_and_of_no_others(
    data: Path, root: Path, tmp_path: Path, tied: bool
) -> None:
    import peft

    from ropewalk.jobs.training.loop.weights.export import export

    bare = make_base(tmp_path / "bare", template=None, tie_word_embeddings=tied)
    run = make_run(
        root, finetune_config(bare, data, chat={"template": "chatml"}, lora=LORA, steps=2, checkpoint={"every_steps": 1})
    )
    group = start(run, 2)
    group.until(lambda: bool(events(run, "checkpoint")))
    group.kill()
    launch(run, 1)
    saved = [name for name in weights(run) if name.startswith("model.") and "lora_" not in name]
    layers = ["model.embed_tokens"] if tied else ["lm_head", "model.embed_tokens"]
    assert sorted(saved) == [f"model.{name}.token_adapter.trainable_tokens_delta.default" for name in layers]
    merged: Any = AutoModelForCausalLM.from_pretrained(export(run, tmp_path / "merged"))
    adapted: Any = peft.AutoPeftModelForCausalLM.from_pretrained(export(run, tmp_path / "adapter", adapter=True))
    tokens = torch.arange(300, 323)[None]
    torch.testing.assert_close(adapted(tokens).logits, merged(tokens).logits, rtol=1e-4, atol=1e-5)
    before: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter/base")
    for layer in layers:
        moved = (merged.get_submodule(layer).weight - before.get_submodule(layer).weight).abs().amax(1)
        assert moved[-2:].min() > 0, "those of the tokens of chatml"
        assert moved[:-2].max() == 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # what peft 0.21 asks of v5
def test_a_run_begins_with_another_runs_model_and_tokenizer(base: Path, data: Path, root: Path, tmp_path: Path) -> None:
    import peft

    from ropewalk.jobs.training.loop.weights.export import export

    first = make_run(root, finetune_config(base, data, lora=LORA, steps=4))
    launch(first, 1)
    config = {**finetune_config(base, data, steps=1, lora=LORA), "model": {"run": first.id}}
    second = make_run(root, config)
    launch(second, 1)
    assert losses(second)[1] < losses(first)[1]
    adapted: Any = peft.AutoPeftModelForCausalLM.from_pretrained(export(second, tmp_path / "adapter", adapter=True))
    merged: Any = AutoModelForCausalLM.from_pretrained(export(second, tmp_path / "merged"))
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(adapted(tokens).logits, merged(tokens).logits, rtol=1e-4, atol=1e-5)
    assert "samples.html" in {path.name for path in second.path.iterdir()}


def test_a_prepared_directory_is_taken_as_it_is(base: Path, data: Path, root: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    first = make_run(root, finetune_config(base, data, prepared=str(prepared), steps=2))
    launch(first, 2)
    second = make_run(root, finetune_config(base, prepared, steps=2))
    launch(second, 1)
    assert losses(second) == pytest.approx(losses(first), rel=1e-6)
    assert (
        json.loads((second.path / "data.json").read_text())["hash"] == json.loads((first.path / "data.json").read_text())["hash"]
    )
    data_copy = write_lines(tmp_path / "other.jsonl", chats(20))
    third = make_run(root, finetune_config(base, data_copy, prepared=str(prepared)))
    assert start(third, 1).wait() == [42]
    assert "holds a data set made with other settings" in log_of(third)


def test_what_was_prepared_from_conversations_is_private(base: Path, data: Path, tmp_path: Path) -> None:
    shared = tmp_path / "runs" / ".prepared"
    shared.mkdir(parents=True)
    shared.chmod(0o755)
    run = make_run(tmp_path / "runs", finetune_config(base, data, steps=1))
    prepared = Path(launch(run, 1)["data"])
    assert prepared.parent == shared
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (shared, prepared)] == [0o700, 0o700]
    assert f"{shared} was open to other users and is private now" in log_of(run)


@pytest.mark.soak(
    "two runs; test_a_run_begins_with_another_runs_model_and_tokenizer opens both exports,"
    " test_the_mean_of_the_weights_outlives_a_kill_and_is_the_formula has the mean"
)
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # what peft 0.21 asks of v5
def test_exports_open_as_a_whole_as_an_adapter_and_as_a_mean(base: Path, data: Path, root: Path, tmp_path: Path) -> None:
    import peft

    from ropewalk.jobs.models.cards.export import export_with_cards
    from ropewalk.jobs.training.loop.weights.export import export
    from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model

    run = make_run(root, finetune_config(base, data, lora={**LORA, "dora": True}, ema={"decay": 0.5}, steps=4))
    launch(run, 2)
    for name, options in {"whole": {}, "adapter": {"adapter": True}, "mean": {"ema": True}}.items():
        export(run, tmp_path / name, **options)  # type: ignore[arg-type]
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert (
            tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|im_start|>user\na<|im_end|>\n"
        )
    tokens = torch.arange(20)[None]
    whole, mean = (AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits for name in ("whole", "mean"))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter")(tokens).logits
    torch.testing.assert_close(adapted, whole, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(mean, whole, atol=1e-4)
    assert torch.equal(load_model(run)[0](tokens).logits, whole)
    full = make_run(root, finetune_config(base, data, steps=1))
    launch(full, 1)
    with pytest.raises(ConfigError, match=r"keeps no best checkpoint; train with validation\.keep_best: true"):
        export_with_cards(run, tmp_path / "none", best=True)
    with pytest.raises(ConfigError, match="trains all weights and has no adapter; omit --adapter"):
        export(full, tmp_path / "none", adapter=True)
    with pytest.raises(ConfigError, match="keeps no moving average of its weights"):
        export(full, tmp_path / "none", ema=True)


def test_the_mean_of_the_weights_outlives_a_kill_and_is_the_formula(base: Path, data: Path, root: Path) -> None:
    config = finetune_config(
        base,
        data,
        ema={"decay": 0.6},
        optim={"lr": 1e-2, "warmup_steps": 0, "layer_decay": 0.5},
        checkpoint={"every_steps": 1, "keep": 99},
        steps=4,
    )
    whole, parted = make_run(root, config), make_run(root, config)
    launch(whole, 1)
    group = start(parted, 2)
    group.until(lambda: len(events(parted, "checkpoint")) >= 2)
    group.kill()
    launch(parted, 2)
    plain: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    mean = {f"model.{name}": parameter.detach().clone() for name, parameter in plain.named_parameters()}
    begin = dict(mean)
    for step in range(1, 5):
        keep, saved = min(0.6, (1 + step) / (10 + step)), weights(whole, step)
        mean = {name: value + (1 - keep) * (saved[name] - value) for name, value in mean.items()}
    for run in (whole, parted):
        result = weights(run)
        for name, value in mean.items():
            torch.testing.assert_close(result[name.replace("model.", "ema.", 1)], value, rtol=1e-4, atol=1e-5)
    moved = {name: (weights(whole, 1)[name] - begin[name]).abs().max().item() for name in mean}
    steps = [moved["model.model.norm.weight"], *(moved[f"model.model.layers.{i}.mlp.up_proj.weight"] for i in (1, 0))]
    assert steps == pytest.approx([1e-2, 5e-3, 2.5e-3], rel=1e-2), "Adam's first step is the learning rate"
    assert moved["model.model.embed_tokens.weight"] == pytest.approx(1.25e-3, rel=1e-2)


def test_it_answers_in_the_terminal(base: Path, data: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from ropewalk.jobs.cli.chat import chat
    from ropewalk.jobs.inference.scoring.chat import open_chat
    from ropewalk.jobs.inference.scoring.generate import Sampling

    run = make_run(root, finetune_config(base, data, steps=1, samples={"prompts": ["the rope"], "max_new_tokens": 5}))
    launch(run, 1)
    table = read_table(run.path / "tables/samples.json")
    assert table is not None
    assert [row[2].strip() for row in table.rows] == [open_chat(str(run.path), Sampling(max_new_tokens=5)).answer("the rope")]
    first = open_chat(str(run.path), Sampling(max_new_tokens=5), system="Be kind.")
    messages = [first.answer("the rope"), first.answer("more")]
    again = open_chat(str(run.path), Sampling(max_new_tokens=5), system="Be kind.")
    assert [again.answer("the rope"), again.answer("more")] == messages
    assert [message["role"] for message in first.messages] == ["system", "user", "assistant", "user", "assistant"]
    monkeypatch.setattr("sys.stdin", io.StringIO("the rope\nmore\n"))
    printed: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *arguments, **options: printed.append(" ".join(arguments)))
    chat(str(run.path), system="Be kind.", temperature=0.0, top_p=1.0, max_new_tokens=5)
    assert printed == messages


@pytest.mark.soak("dozens of steps and validations; test_validation_and_early_stop stops a run")
def test_the_defaults_stop_a_run_that_learns_by_heart(root: Path, tmp_path: Path) -> None:
    """60 conversations whose answers follow from nothing, 30 epochs: there is nothing to learn but the words themselves."""
    draw, vocabulary = random.Random(5), WORDS.split()
    answers = [
        {"prompt": " ".join(draw.choices(vocabulary, k=4)), "completion": " ".join(draw.choices(vocabulary, k=4))}
        for _ in range(60)
    ]
    from ropewalk.jobs.models.cards.export import export_with_cards
    from ropewalk.jobs.training.loop.weights.load_checkpoint import load_model

    base = make_base(tmp_path / "base")
    keys = {"model": {"path": str(base)}, "data": str(write_lines(tmp_path / "a.jsonl", answers)), "seq_len": 128}
    more = {
        "checkpoint": {"every_steps": 1000, "keep": 1},
        "packing": False,
        "batch": {"global_batch": 16, "micro_batch": 16},
        "optim": {"lr": 1e-2, "warmup_steps": 5},
    }
    run = make_run(root, {**keys, **more, "steps": 30 * 57 // 16})
    results = launch(run, 1)
    assert [event["step"] for event in events(run, "early_stop")] == [results["step"]]
    assert results["step"] < 106
    gaps = [line["validation/gap"] for line in run.read_metrics() if "validation/gap" in line]
    assert gaps[-1] > gaps[2] + 0.05, "and one sees why"
    validated = {line["step"]: line["validation/loss"] for line in run.read_metrics() if "validation/loss" in line}
    best = min(validated, key=lambda step: validated[step])
    assert best < results["step"]
    assert complete_steps(StoragePath(run.checkpoints)) == [best, results["step"]], "one is kept beside the newest"
    chosen: Any = AutoModelForCausalLM.from_pretrained(export_with_cards(run, tmp_path / "best", best=True))
    assert f"step {best}" in (tmp_path / "best/README.md").read_text()
    tokens = torch.arange(20)[None]
    assert torch.equal(chosen(tokens).logits, load_model(run, best)[0](tokens).logits)


@pytest.mark.soak("a minute; make test kills preprocess, and runs test_prepare.py")
def test_many_files_are_prepared_by_actors_and_a_kill_loses_no_unit(base: Path, root: Path, tmp_path: Path) -> None:
    for number in range(3):
        write_lines(
            tmp_path / f"{number}.jsonl",
            [{**conversation, "id": f"{number}-{conversation['id']}"} for conversation in chats(40, seed=number)],
        )
    run = make_run(root, {**finetune_config(base, tmp_path, steps=2, actors=2), "data": [str(tmp_path / "*.jsonl")]})
    group = start(run, 2)
    unfinished = root / ".prepared"
    group.until(lambda: any(unfinished.glob(f".*{run.id}/.work/units/*.json")) or bool(losses(run)))
    group.kill()
    results = launch(run, 2)
    assert results["conversations"] == 120
    assert events(run, "actors") or "Ray does not start" in log_of(run)
    assert not list(unfinished.glob(f".*{run.id}")), "nothing half-made is left"
