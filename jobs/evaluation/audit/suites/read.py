"""Read a suite's file as pairs; the format is recognized by file ending and keys."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

from ropewalk.cluster.errors import DataError
from ropewalk.datapipe.inputs.streams import split_url
from ropewalk.jobs.evaluation.audit.suites.crows_pairs import crows_pair
from ropewalk.jobs.evaluation.audit.suites.pair import Pair, make_pair
from ropewalk.jobs.evaluation.audit.suites.stereoset import stereoset_pairs, stereoset_row
from ropewalk.jobs.evaluation.audit.suites.winobias import winobias_pairs, winobias_row

Row = dict[str, Any]
FORMATS = (
    "CrowS-Pairs (csv with sent_more and sent_less, or sentence, mask1 and mask2), StereoSet (json, or jsonl with stereotype and"
    " anti-stereotype), WinoBias (jsonl with pro_stereotyped, or pro_*.txt beside anti_*.txt), or jsonl with more and less"
)


def read_pairs(url: str, suite: str) -> list[Pair]:
    """Return all pairs of a file. Raises DataError for a missing file, an unknown format, an invalid line, or no pair."""
    text = read_text(url)
    ending = url.rpartition(".")[2].lower()
    if ending == "csv":
        pairs = [_row_reader(row, where)(row, where, suite, n) for n, where, row in _csv_rows(text, url)]
    elif ending == "json":
        pairs = list(stereoset_pairs(_json(text, url), url, suite))
    elif ending == "jsonl":
        pairs = [_row_reader(row, where)(row, where, suite, n) for n, where, row in json_rows(text, url)]
    elif "pro_stereotyped" in url.rpartition("/")[2]:
        other = url.replace("pro_stereotyped", "anti_stereotyped")
        pairs = list(winobias_pairs(text, read_text(other), url, suite))
    else:
        raise DataError(f"suites: {url}: unknown format; supported: {FORMATS}")
    if not pairs:
        raise DataError(f"suites: {url}: the file has no pair")
    return pairs


def read_text(url: str) -> str:
    """Return a file as text. Raises DataError if it does not exist or is not UTF-8."""
    storage, name = split_url(url)
    try:
        return storage.read(name).decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{url}: no such file; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{url}: is a directory; name a file in it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{url}: is not UTF-8 text (byte {error.start}); convert it") from None


def json_rows(text: str, url: str) -> Iterator[tuple[int, str, Row]]:
    """Yield (number from 1, location for errors, object) for each line of a JSON-lines file. Raises DataError."""
    number = 0
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        number += 1
        where = f"{url} line {line_number}"
        row = _json(line, where)
        if not isinstance(row, dict):
            raise DataError(f"{where}: must be an object of keys and values, is {line.strip()[:80]!r}")
        yield number, where, row


def _csv_rows(text: str, url: str) -> Iterator[tuple[int, str, Row]]:
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), 1):
            yield number, f"{url} row {number}", dict(row)
    except csv.Error as error:
        raise DataError(f"{url}: is not CSV: {error}; write it again") from None


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}; correct it") from None


def _row_reader(row: Row, where: str) -> Callable[[Row, str, str, int], Pair]:
    keys = set(row)
    if keys >= {"sent_more", "sent_less"} or keys >= {"sentence", "mask1", "mask2"}:
        return crows_pair
    if keys >= {"stereotype", "anti-stereotype"} or keys >= {"stereotype", "anti_stereotype"}:
        return stereoset_row
    if "pro_stereotyped" in keys:
        return winobias_row
    if keys >= {"more", "less"}:
        return _plain_pair
    raise DataError(f"{where}: its keys are {', '.join(map(str, row))}, which match no supported format: {FORMATS}")


def _plain_pair(row: Row, where: str, suite: str, number: int) -> Pair:
    keys = ("more", "less", "target", "bias_type", "context", "unrelated", "by")
    fields = {key: row[key] for key in keys if row.get(key) is not None}
    if fields.get("by", "sum") not in ("sum", "token"):
        raise DataError(f"{where}: 'by' must be sum or token, is {fields['by']!r}")
    return make_pair(where, suite=suite, number=number, **fields)
