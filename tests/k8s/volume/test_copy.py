"""This machine's copy of a run on a volume holds what lies there, though only what is new is sent. No cluster is needed."""

import io
import json
from pathlib import Path

from ropewalk.k8s.volume.sync_client import SyncWriter, request_of
from ropewalk.k8s.volume.sync_server import END, send


def test_a_copy_takes_what_grows_only_where_it_is_as_it_came(tmp_path: Path) -> None:
    """A local write into the copy, such as an event, must not be mistaken for the beginning of the remote file."""
    there, here = tmp_path / "there/run", tmp_path / "here/run"
    there.mkdir(parents=True)

    def fetch() -> int:
        writer, sent = SyncWriter(here), io.BytesIO()
        send(there, request_of(here), sent)
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
        send(there, request_of(here), sent)
        writer.write(sent.getvalue())
        writer.remember()
        assert (here / "audit/items.jsonl").read_text() == text


def test_an_inode_that_is_given_again_belongs_to_another_file(tmp_path: Path) -> None:
    """A file system gives the inode of the last version but one to the next one."""
    there, here = tmp_path / "there/run", tmp_path / "here/run"
    there.mkdir(parents=True)
    (items := there / "items.jsonl").write_text("a" * 10)
    writer, sent = SyncWriter(here), io.BytesIO()
    send(there, request_of(here), sent)
    writer.write(sent.getvalue())
    writer.remember()
    with items.open("r+") as stream:  # the inode stays, as by two replacements between two looks
        stream.write("b" * 1000)
    send(there, request_of(here), sent := io.BytesIO())
    writer.write(sent.getvalue())
    assert (here / "items.jsonl").read_text() == "b" * 1000


def test_laptops_and_images_of_other_versions_still_understand_each_other(tmp_path: Path) -> None:
    """A pod reads with the code that its run was submitted with, or with its image's."""
    there, here = tmp_path / "there/run", tmp_path / "here/run"
    there.mkdir(parents=True)
    (log := there / "rank-00000.log").write_text("one\n")
    writer, sent = SyncWriter(here), io.BytesIO()
    send(there, request_of(here), sent)
    header = {key: value for key, value in json.loads(sent.getvalue().partition(b"\n")[0]).items() if key != "inode"}
    writer.write(json.dumps(header).encode() + b"\none\n" + END)  # an older server says no inode
    writer.remember()
    assert [len(state) for state in request_of(here)["have"].values()] == [2], "all that an older server unpacks"
    log.write_text("one\ntwo\n")
    send(there, {"have": request_of(here)["have"]}, sent := io.BytesIO())  # an older laptop's request
    writer.write(sent.getvalue())
    assert (here / "rank-00000.log").read_text() == "one\ntwo\n"
