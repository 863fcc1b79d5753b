"""This machine's copy of a run on a volume holds what lies there, though only what is new is sent. No cluster is needed."""

import io
from pathlib import Path

from k8s.volume.sync_client import SyncWriter, unchanged
from k8s.volume.sync_server import send


def test_a_copy_takes_what_grows_only_where_it_is_as_it_came(tmp_path: Path) -> None:
    """What this machine writes into its copy, such as an event, must not be taken for the beginning of what is there."""
    there, here = tmp_path / "there/run", tmp_path / "here/run"
    there.mkdir(parents=True)

    def fetch() -> int:
        writer, sent = SyncWriter(here), io.BytesIO()
        send(there, {"have": unchanged(here)}, sent)
        writer.write(sent.getvalue())
        assert writer.complete
        writer.remember()
        assert (here / "events.jsonl").read_bytes() == (there / "events.jsonl").read_bytes()
        return len(sent.getvalue())

    (there / "events.jsonl").write_text('{"event": "started"}\n' * 1000)
    assert fetch() > 20_000
    with (there / "events.jsonl").open("a") as stream:
        stream.write('{"event": "stopped"}\n')
    assert fetch() < 500, "only what is new"
    with (here / "events.jsonl").open("a") as stream:
        stream.write('{"event": "resumed_by_user"}\n')
    with (there / "events.jsonl").open("a") as stream:
        stream.write('{"event": "started"}\n' * 100)
    assert fetch() > 20_000


def test_a_file_that_another_has_replaced_comes_whole(tmp_path: Path) -> None:
    """Items of an audit, for one, are written anew with every measure; by their name they could be a log that has grown."""
    there, here = tmp_path / "there/run", tmp_path / "here/run"
    (there / "audit").mkdir(parents=True)
    items = there / "audit/items.jsonl"
    for text in ("a" * 10, "b" * 10, "c" * 1000):
        items.with_name("new").write_text(text)
        items.with_name("new").replace(items)
        writer, sent = SyncWriter(here), io.BytesIO()
        send(there, {"have": unchanged(here)}, sent)
        writer.write(sent.getvalue())
        writer.remember()
        assert (here / "audit/items.jsonl").read_text() == text
