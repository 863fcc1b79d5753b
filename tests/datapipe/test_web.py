"""Web archives: pages become documents, whatever else is in them is recorded, and a cut file gives what came before."""

import gzip
from pathlib import Path

from ropewalk.datapipe.inputs.files import kind_of
from tests.fakes.documents import make, rejected, rows

PAGE = """<html><head><title>T</title><script>var x = 1;</script></head><body><nav><a href=/>Home</a><a href=/x>Menu</a></nav>
<main><article><h1>Ropes</h1><p>A rope is laid from strands, and strands from yarns; the walk is long and straight{}.</p>
<p>Second paragraph of the page with Größe and naïve words, which is long enough to count as content.</p>
</article></main></body></html>"""


def record(number: int, body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\n"
        f"WARC-Target-URI: https://host{number % 2}.example/page/{number}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def archive(path: Path, records: list[bytes]) -> Path:
    path.write_bytes(b"".join(map(gzip.compress, records)))
    return path


def pages(count: int) -> list[bytes]:
    return [record(n, PAGE.format(f", number {n}").encode()) for n in range(count)]


def test_pages_are_documents_and_the_rest_is_recorded(tmp_path: Path) -> None:
    records = [
        *pages(8),
        record(8, b"\x89PNG", "image/png"),
        record(9, PAGE.encode(), status="404 Not Found"),
        record(10, b"  ", "text/plain"),
        record(11, "Größe, in latin-1, is plain text here".encode("latin-1"), "text/plain; charset=iso-8859-1"),
    ]
    manifest = make(archive(tmp_path / "crawl.warc.gz", records), tmp_path / "out", validation_fraction=0)
    assert manifest.rejected.reasons == {"empty": 1, "http_status": 1, "not_a_page": 1}
    assert manifest.totals.documents == 9
    listed = rejected(tmp_path / "out", places=True)
    assert [(record["reason"], record["file"], record["line"]) for record in listed] == [
        ("not_a_page", "crawl.warc.gz", 9),
        ("http_status", "crawl.warc.gz", 10),
        ("empty", "crawl.warc.gz", 11),
    ]
    created = rows(tmp_path / "out")
    assert {cell["source"] for cell in created} == {"host0.example", "host1.example"}
    assert created[0]["id"] == "<urn:uuid:00000000-0000-0000-0000-000000000000>"


def test_a_cut_archive_gives_the_pages_before_the_cut(tmp_path: Path) -> None:
    whole = archive(tmp_path / "whole.warc.gz", pages(12)).read_bytes()
    (tmp_path / "cut.warc.gz").write_bytes(whole[: len(whole) * 2 // 3])
    manifest = make(tmp_path / "cut.warc.gz", tmp_path / "out", validation_fraction=0)
    assert 6 <= manifest.totals.documents <= 8
    assert manifest.rejected.reasons == {"damaged_file": 1}
    assert manifest.inputs[0].damage is not None


def test_endings() -> None:
    assert [kind_of(name) for name in ("a.warc.gz", "a.warc", "CC.warc.wet.gz", "a.jsonl.gz")] == [
        "warc.gz",
        "warc",
        "warc.gz",
        "gzip",
    ]
