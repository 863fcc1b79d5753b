"""Configuration: what a user may write, and what a mistake is answered with."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from ropewalk.cluster.config import JobConfig, Resources
from ropewalk.cluster.config_reader import apply_override, load_config, parse_yaml, read_yaml
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath
from ropewalk.cluster.section import Section
from ropewalk.datapipe.passes.config import DataSetConfig


class Optim(Section):
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")


class Preset(Section):
    preset: str


class Inline(Section):
    config: dict[str, Any]


class Job(JobConfig):
    data: DataPath
    optim: Optim = Optim()
    model: Preset | Inline = Preset(preset="tiny")


def load(*overrides: str, **values: Any) -> Job:
    config = load_config(Job, {"data": "d", **values}, overrides)
    assert isinstance(config, Job)
    return config


@pytest.mark.parametrize(
    ("nodes", "spare", "allocated", "replaces"),
    [("2", 0, "2", False), ("2", 1, "3", True), ("1..4", 2, "1..6", True)],
)
def test_spare_nodes_are_allocated_too(nodes: str, spare: int, allocated: str, replaces: bool) -> None:
    resources = Resources.model_validate({"nodes": nodes, "spare_nodes": spare})
    assert (str(resources.allocated_nodes), resources.replaces_nodes) == (allocated, replaces)
    most = resources.nodes.most
    assert resources.wanted_nodes(None) == most + spare
    assert resources.wanted_nodes(1) == (1 if resources.nodes.elastic else most + spare), "no spare node beside a small group"
    assert resources.as_allocated().nodes == resources.allocated_nodes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f line 3: duplicate key 'a', first used in line 1"),
        ("a:\n  x: 1\n  'x': 2\n", "f line 3: duplicate key 'x', first used in line 2"),
        ("[{a: 1, a: 1}]", "duplicate key 'a'"),
        ("a: {\n", "f line 2: not YAML: "),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, "f")


def test_keys_of_yaml_are_words_and_merged_keys_may_be_replaced() -> None:
    assert parse_yaml("on: 1\nno: 2\nyes: no\n", "f") == {"on": 1, "no": 2, "yes": False}
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\nc: *a\n"
    assert parse_yaml(text, "f") == {"a": {"x": 1, "y": 1}, "b": {"x": 2, "y": 1}, "c": {"x": 1, "y": 1}}


@pytest.mark.parametrize("value", [["echo", "\U0001f600 $(id)"], {"a": "\x7f"}, "\U0001f600", [1, 2.5, None, True]])
def test_a_value_that_is_written_as_json_is_read_as_it_was(value: Any) -> None:
    results: dict[str, Any] = {}
    apply_override(results, f"a.b={json.dumps(value)}")
    assert results == {"a": {"b": value}}


def test_what_looks_like_a_date_and_is_none_is_text() -> None:
    results: dict[str, Any] = {}
    apply_override(results, "notes=2026-31-12")
    assert results == {"notes": "2026-31-12"}


def test_a_misspelt_key_is_named_before_those_that_are_missing() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'inptu'.*; did you mean 'input'") as caught:
        load_config(DataSetConfig, {"inptu": "x", "outptu": "x", "tokeniser": {"train": 400}})
    assert all(f"unknown key {key!r}" in str(caught.value) for key in ("inptu", "outptu", "tokeniser"))


def test_an_override_reaches_into_a_file_that_a_key_names(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("run: pretrain\noptim: {lr: 1}\n")
    values: dict[str, Any] = {"job": "pretrain", "base": str(tmp_path / "train.yaml")}
    apply_override(values, "base.optim.lr=2")
    assert values == {"job": "pretrain", "base": {"optim": {"lr": 2}}}
    with pytest.raises(ConfigError, match="no such configuration file"):
        apply_override({"job": "pretrain", "base": "none.yaml"}, "base.optim.lr=2")


def test_overrides_win_over_the_file_and_keep_their_types() -> None:
    config = load("optim.lr=1e-2", "seed=7", "name=x", optim={"lr": 0.5})
    assert (config.optim.lr, config.seed, config.name) == (0.01, 7, "x")


def test_local_paths_are_resolved_where_the_user_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert load().data == str(tmp_path / "d")
    assert load("data=s3://bucket/x").data == "s3://bucket/x"


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load().optim.lr = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "arguments"),
    [
        ("optim.lrr=1", ["unknown key 'optim.lrr'", "did you mean 'optim.lr'?"]),
        ("lr=1e-3", ["unknown key 'lr'; did you mean 'optim.lr'?"]),
        ("gpus=2", ["did you mean 'resources.gpus'?"]),
        ("memorygib=2", ["did you mean 'resources.memory_gib'?"]),
        ("optim.zzz=1", ["unknown key 'optim.zzz'; keys of optim: ", "optim.lr"]),
        ("zzz=1", ["unknown key 'zzz'; valid keys: ", ", name, seed, secrets, packages, resources, "]),
        ("optm.lr=1", ["unknown key 'optm'", "did you mean 'optim'?"]),
        ("optim.lr=fast", ["optim.lr: must be a number, not 'fast'"]),
        ("optim.lr=-1", ["optim.lr: must be above 0, not -1"]),
        ("optim.lr=.nan", ["optim.lr", "finite"]),
        ("resources.nodes=4..1", ["resources.nodes", "1..4", "'4..1'"]),
        ("resources.nodes=0", ["resources.nodes", "at least 1"]),
        ("resources.time_limit_minutes=0", ["resources.time_limit_minutes: must be above 0"]),
        ("seed.x=1", ["seed"]),
        ("--steps=3", ["no such option", "steps=..."]),
        ("steps", ["key=value"]),
        ("model.presett=tiny", ["model.presett"]),
    ],
)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override: str, arguments: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert "\n" not in str(caught.value)
    for word in arguments:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("resources", "ranks"),
    [
        ({}, 1),
        ({"gpus": 8}, 8),
        ({"gpus": 8, "ranks_per_node": 2}, 2),
        ({"ranks_per_node": 4}, 4),
        ({"gpus": 8, "ranks_per_node": 1}, 1),
    ],
)
def test_a_node_has_a_rank_for_each_gpu_unless_it_is_told_otherwise(resources: dict[str, int], ranks: int) -> None:
    result = load(resources=resources).resources
    assert result.local_world_size == ranks
    assert Resources.model_validate(result.model_dump(mode="json")) == result


@pytest.mark.parametrize(("ranks", "gpus"), [(3, 8), (2, 1), (16, 8)])
def test_ranks_that_gpus_do_not_go_round_are_refused_with_both_numbers(ranks: int, gpus: int) -> None:
    resources = {"ranks_per_node": ranks, "gpus": gpus}
    with pytest.raises(ConfigError, match=f"{gpus} GPUs per node .* over {ranks} ranks.*remove ranks_per_node"):
        load(resources=resources)
    assert Resources.model_validate(resources).gpus == gpus, "the record of an older run can still be read"


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="data: required"):
        load_config(Job, {})


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "a: 1\n a: 2"])
def test_a_file_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml"):
        parse_yaml(text, "job.yaml")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean .*pretrain\.yaml"):
        read_yaml(tmp_path / "pretran.yaml")


def test_numbers_written_as_people_write_them() -> None:
    assert parse_yaml("lr: 1e-3\nbig: 3E5\nname: e3", "x") == {"lr": 0.001, "big": 300000.0, "name": "e3"}


@pytest.mark.parametrize(("word", "least", "most"), [(2, 2, 2), ("2", 2, 2), ("1..4", 1, 4)])
def test_node_ranges_survive_a_round_trip(word: Any, least: int, most: int) -> None:
    resources = Resources.model_validate({"nodes": word})
    again = Resources.model_validate(resources.model_dump(mode="json"))
    assert (again.nodes.least, again.nodes.most) == (least, most)
