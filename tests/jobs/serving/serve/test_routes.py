"""routes.json: what is valid, and that a conversation always meets the same version."""

import json
from pathlib import Path

import pytest

from ropewalk.cluster.errors import ConfigError
from ropewalk.jobs.serving.serve.routes import Alias, Replica, Routes, Version, read_routes, write_routes

REPLICA = Replica(id="a", url="http://127.0.0.1:1", engine="llamacpp", slots=2)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    aliases = {"production": Alias(stable="m-1", canary="m-2", share=0.1)}
    routes = Routes(versions={"m-1": Version(replicas=(REPLICA,)), "m-2": Version()}, aliases=aliases, default="production")
    write_routes(tmp_path / "routes.json", routes)
    assert read_routes(tmp_path / "routes.json") == routes


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{", "invalid routes"),
        ({"aliases": {"production": {"stable": "m-9"}}}, "no version m-9"),
        ({"default": "m-9"}, "neither an alias nor a version"),
        ({"versions": {"m": {"replicas": [{"id": "a", "url": "unix:/x", "engine": "e"}]}}}, "url"),
        ({"versions": {"m": {"replicas": [REPLICA.model_dump()] * 2}}}, "ids must be unique"),
        ({"versions": {"m": {}}, "aliases": {"m": {"stable": "m"}}}, "both an alias and a version"),
    ],
)
def test_what_is_not_valid_is_named(tmp_path: Path, raw: object, message: str) -> None:
    (tmp_path / "routes.json").write_text(raw if isinstance(raw, str) else json.dumps(raw))
    with pytest.raises(ConfigError, match=message):
        read_routes(tmp_path / "routes.json")


def test_a_share_of_conversations_meets_the_canary_and_always_the_same_ones() -> None:
    alias = Alias(stable="old", canary="new", share=0.2)
    drawn = [alias.version_for(b"%d" % k) for k in range(2000)]
    assert 300 < drawn.count("new") < 500
    assert drawn == [alias.version_for(b"%d" % k) for k in range(2000)]
    wider = alias.model_copy(update={"share": 0.5})
    assert all(wider.version_for(b"%d" % k) == "new" for k in range(2000) if drawn[k] == "new")
