"""Near-duplicates: found by MinHash, verified by Jaccard similarity, one of each cluster kept, whoever does the work or dies."""

import random
import re
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ropewalk.cluster.storage import StoragePath
from ropewalk.datapipe.dedup.dropped import write_dropped
from ropewalk.datapipe.dedup.near.connect import Match, Star
from ropewalk.datapipe.dedup.near.intermediate import EDGE, FOLDER, SearchPlan, star_name, unique_edges
from ropewalk.datapipe.dedup.near.search import MATCH_RECORDS, _settle, match_parts
from ropewalk.datapipe.dedup.stages import Stages, run_stage_task
from ropewalk.datapipe.text.document_batch import DocumentBatch
from ropewalk.datapipe.text.minhash.bands import BAND_PARTS, write_bands
from ropewalk.datapipe.text.minhash.config import NearDuplicates
from ropewalk.datapipe.text.minhash.signatures import band_keys, shingles_of
from ropewalk.datapipe.text.parted import read_all, spread, write_parts
from tests.datapipe.test_preprocess import context_of
from tests.fakes.documents import configure, contents, made_with_kills, make, rejected, rows, write_lines
from tests.fakes.driver import Driver
from tests.fakes.near import planted
from tests.fakes.plain_rules import unspaced, words_of

KEYS: dict[str, Any] = {"near_duplicates": {}, "validation_fraction": 0, "unit_mib": 0.3, "shard_mib": 0.3}


def plain_shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The n-grams of a text's words, of which letters and digits count, in lower case."""
    parts = ("".join(c for c in part if c.isalnum() or unspaced(c)).lower() for part in words_of(text))
    tokens = [word for word in parts if word]
    size = min(size, len(tokens))
    return {tuple(tokens[at : at + size]) for at in range(len(tokens) - size + 1)} if tokens else set()


def jaccard(first: set[Any], other: set[Any]) -> float:
    return len(first & other) / len(first | other) if first | other else 0.0


def near(output: Path) -> dict[str, str]:
    """Each near-duplicate, and the document that it repeats."""
    return {line["id"]: line["repeats"] for line in rejected(output) if line["reason"] == "near_duplicate"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return planted(200, 300)


@pytest.fixture(scope="module")
def source(documents: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    half = len(documents) // 2
    write_lines(folder / "in/a.jsonl", documents[:half])
    write_lines(folder / "in/b.jsonl", documents[half:])
    return folder / "in"


@pytest.fixture(scope="module")
def data_set(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("made") / "out"
    make(source, output, **KEYS)
    return output


def test_recall_and_precision_against_true_similarity(documents: list[dict[str, Any]], data_set: Path) -> None:
    shingles = {d["id"]: plain_shingles(d["text"]) for d in documents}
    repeats = near(data_set)
    families: dict[str, list[str]] = {}
    for name in shingles:
        families.setdefault(name.partition("-")[0] if "single" not in name else name, []).append(name)
    similar = {
        pair: value
        for names in families.values()
        for pair in combinations(names, 2)
        if (value := jaccard(shingles[pair[0]], shingles[pair[1]])) >= 0.8
    }
    together = [pair for pair in similar if repeats.get(pair[0], pair[0]) == repeats.get(pair[1], pair[1])]
    assert len(similar) > 300
    assert len(together) >= 0.95 * len(similar)
    right = [name for name, repeat in repeats.items() if jaccard(shingles[name], shingles[repeat]) >= 0.8]
    verified = [name for name in repeats if any(name in pair for pair in together)]
    assert len(verified) == len(repeats), "each has a near-duplicate in its cluster"
    assert len(right) >= 0.99 * len(repeats), "and nearly repeats the very document that is named"


def test_one_of_each_cluster_stays_and_is_named(documents: list[dict[str, Any]], data_set: Path) -> None:
    repeats = near(data_set)
    remaining = {row["id"] for row in rows(data_set)}
    assert set(repeats.values()) <= remaining
    assert remaining.isdisjoint(repeats)
    assert len(remaining) + len(rejected(data_set)) == len(documents)


def test_the_most_central_document_stays_else_the_first(tmp_path: Path) -> None:
    message = " ".join(f"w{n}" for n in range(300))
    left, right = message.replace("w7 ", "x7 ").replace("w40 ", ""), message.replace("w200 ", "x200 ").replace("w260 ", "")
    texts = {
        "left": left,
        "middle": message,
        "right": right,
        "first": f"{message} {message[::-1]}",
        "second": f"{message} {message[::-1]} end",
    }
    source = write_lines(tmp_path / "in.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    make(source, tmp_path / "out", near_duplicates={"similarity": 0.92}, validation_fraction=0)
    assert near(tmp_path / "out") == {"left": "middle", "right": "middle", "second": "first"}


@pytest.mark.soak("another data set; test_many_small_parts_decide_as_one_does cuts the search")
def test_what_is_decided_does_not_depend_on_how_the_input_is_cut(tmp_path: Path, source: Path, data_set: Path) -> None:
    manifest = make(source, tmp_path / "out", **{**KEYS, "unit_mib": 0.05})
    assert near(tmp_path / "out") == near(data_set)
    assert len(manifest.rejected.files) > 5
    assert manifest.near_duplicates is not None
    assert sum(manifest.near_duplicates.sizes.values()) == manifest.near_duplicates.clusters
    assert manifest.rejected.reasons["near_duplicate"] == len(near(data_set))


def test_many_small_parts_decide_as_one_does(
    tmp_path: Path, source: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ropewalk.datapipe.dedup.near import search

    monkeypatch.setattr(search, "MATCH_RECORDS", 1000)
    monkeypatch.setattr(search, "STAR_DOCUMENTS", 100)
    monkeypatch.setattr(search, "VERIFY_BYTES", 100_000)
    make(source, tmp_path / "out", **KEYS)
    assert contents(tmp_path / "out") == contents(data_set)


@pytest.mark.parametrize("documents", [1, 10**5, 10**6, 10**7, 10**8, 613 * 10**6, 10**10])
def test_a_task_that_matches_keys_holds_no_more_as_documents_grow(documents: int) -> None:
    parts = match_parts(documents * 14)
    whole = max(-(-BAND_PARTS // parts), 1)  # parts of the files in the largest task
    pieces = max(parts // BAND_PARTS, 1)
    assert documents * 14 * whole / BAND_PARTS / pieces <= max(MATCH_RECORDS, 14)


def test_a_part_of_the_keys_that_is_too_much_for_a_task_is_matched_in_pieces(tmp_path: Path) -> None:
    draw, work = np.random.default_rng(0), StoragePath(tmp_path)
    for unit in (0, 1):  # all keys lie in the first part of the files
        write_bands(work, unit, draw.integers(1, 400, (100, 14), dtype=np.uint64))
    write_dropped(work, FOLDER, (0, 1), (0, 100, 200), lambda rows: np.arange(rows.start, rows.stop) % 7 == 3)

    def edges(parts: Sequence[int], match: int) -> list[list[tuple[int, int]]]:
        plan = SearchPlan(units=(0, 1), offsets=(0, 100, 200), match=match, star=1)
        counts = [Match(part=part, plan=plan).run(work)["edges"] for part in parts]
        results = [read_all(work, [star_name(0, part)], EDGE, 0, 1).tolist() for part in parts]
        assert [len(each) for each in results] == [2 * count for count in counts]
        return results

    whole = set(edges([0], 1)[0])
    pieces = edges([0, 1, 2], 3 * BAND_PARTS)
    assert len(whole) > 100
    assert set().union(*pieces) == whole
    assert all(0 < len(piece) < len(whole) for piece in pieces)


def test_large_clusters_are_compared_by_a_share_of_their_shingles(
    tmp_path: Path, source: Path, data_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ropewalk.datapipe.dedup.near.compare.MOST_SHINGLE_BYTES", 800_000)  # half of them
    make(source, tmp_path / "out", **KEYS)
    result, whole = near(tmp_path / "out"), near(data_set)
    assert abs(len(result) - len(whole)) < 0.1 * len(whole)  # which of a cluster stays may differ
    assert all(item.split("-")[0] == other.split("-")[0] for item, other in result.items())
    assert not result.keys() & set(result.values()), "what stays for others is not dropped itself"


def test_killed_after_any_task_it_goes_on_to_the_same_bytes(tmp_path: Path, source: Path, data_set: Path) -> None:
    config = configure(source, tmp_path / "out", **KEYS)
    assert made_with_kills(config) > 8
    assert contents(tmp_path / "out") == contents(data_set)


def kill_and_finish(tmp_path: Path, source: Path, serial: Path, whens: Sequence[Any], keys: dict[str, Any] = KEYS) -> None:
    output = tmp_path / "out"
    run = context_of(configure(source, output, actors=2, **keys), tmp_path / "runs", cpus=3).run
    for when in whens:
        driver = Driver(run.path)
        try:
            when(driver, output)
        except AssertionError:
            assert driver.process.poll() == 0, "it may have ended before it was killed, but not failed"
            break
        driver.kill()
    driver = Driver(run.path)
    driver.finish()
    assert contents(output) == contents(serial)


@pytest.mark.soak("a minute and a half; make test runs test_work_that_is_committed_is_not_done_again")
def test_killed_drivers_and_actors_leave_no_trace(tmp_path: Path, source: Path, data_set: Path) -> None:
    def when(count: int, kill_actor: bool) -> Any:
        def wait(driver: Driver, output: Path) -> None:
            done = output / ".work/near/done"
            driver.wait_for(lambda: len(list(done.glob("*.json"))) >= count and bool(driver.actors()))
            if kill_actor:
                driver.actors()[0].kill()
                driver.wait_for(lambda: len(list(done.glob("*.json"))) > count)

        return wait

    kill_and_finish(tmp_path, source, data_set, [when(1, True)])


ALL_STAGES: dict[str, Any] = {
    **KEYS,
    "language": {"min_confidence": 0, "code": False},
    # one line without a mark at its end is what all documents here are
    "filters": [{"gopher_quality": {"min_words": 5, "min_stop_words": None}}, {"fineweb": {"min_punctuated_lines": None}}],
    "paragraphs": {"of": "lines", "min_bytes": 20},
    "pii": {},
    "balance": {"by": "language", "temperature": 0.5},
}


@pytest.mark.soak("twenty kills; make test kills preprocess")
def test_twenty_random_kills_change_nothing(tmp_path: Path, source: Path) -> None:
    """With every stage: an actor is killed, or the driver alone, or Ray's own processes; then all of them."""
    draw = random.Random(11)

    def wait(driver: Driver, output: Path) -> None:
        driver.wait_for(lambda: bool(driver.actors()))  # what comes before is Ray's own
        for whom in (draw.choice(["actor", "driver", "cluster"]), "all"):
            until = time.monotonic() + draw.uniform(0, 1)
            driver.wait_for(lambda end=until: time.monotonic() > end)  # type: ignore[misc]
            if whom == "actor":
                for actor in driver.actors()[:1]:
                    actor.kill()
            elif whom != "all":
                for process in [driver.process] if whom == "driver" else driver.family():
                    process.kill()
                break

    make(source, tmp_path / "serial", **ALL_STAGES)
    kill_and_finish(tmp_path, source, tmp_path / "serial", [wait] * 20, ALL_STAGES)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60), st.integers(1, 4))
def test_clusters_are_the_connected_components(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]], parts: int
) -> None:
    work = StoragePath(tmp_path_factory.mktemp("stars"))
    plan = SearchPlan(units=(0,), offsets=(0, 31), match=1, star=parts)
    ends = [np.array([pair[k] for pair in pairs if pair[0] != pair[1]], dtype=np.int64) for k in (0, 1)]
    edges = unique_edges(np.concatenate(ends), np.concatenate(ends[::-1]))
    write_parts(work, star_name(0, 0), edges, spread(edges["from"].view(np.uint64), parts), parts)

    def run(_: str, tasks: Sequence[Any]) -> Any:
        return [(task, run_stage_task(task, work)) for task in tasks]

    stage = _settle(Stages(work, FOLDER, run), plan)
    names = [star_name(stage, part) for part in range(parts)]
    results = {(int(e["from"]), int(e["to"])) for part in range(parts) for e in read_all(work, names, EDGE, part, parts)}
    least = {node: node for pair in pairs for node in pair}
    for _ in least:
        for item, other in pairs:
            least[item] = least[other] = min(least[item], least[other])
    assert results == {(node, root) for node, root in least.items() if node != root}
    assert isinstance(Star(stage=1, part=0, plan=plan, sources=1).name, str)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.sampled_from(list("aB cd\n.ßÉé-1麻绳。กี ")), max_size=40), min_size=1, max_size=5), st.integers(1, 6))
def test_shingles_are_those_of_plain_python(texts: list[str], size: int) -> None:
    """Two texts share as many shingles as plain sets of words do, and equal sets have equal keys."""
    options = NearDuplicates(ngram=size)
    batch = DocumentBatch.of_texts(texts)
    shingles, keys = shingles_of(batch, options), band_keys(batch, options)
    sets = [set(shingles.hashes[a:b].tolist()) for a, b in zip(shingles.bounds, shingles.bounds[1:], strict=False)]
    plain = [plain_shingles(text, size) for text in texts]
    assert [len(s) for s in sets] == [len(p) for p in plain]
    for item, other in combinations(range(len(texts)), 2):
        assert len(sets[item] & sets[other]) == len(plain[item] & plain[other])
        assert bool((keys[item] == keys[other]).all()) == (plain[item] == plain[other])


def test_texts_without_blanks_are_compared_by_their_characters(tmp_path: Path) -> None:
    """Chinese, Japanese and Thai: a sentence added to a page leaves a near-duplicate, another page is none."""
    chinese = "".join(chr(0x4E00 + (n * n * 7) % 5000) + ("、" if n % 9 == 0 else "") for n in range(400))
    draw = random.Random(3)
    thai = "".join(chr(0x0E01 + draw.randrange(46)) + draw.choice(["", "ี", "่"]) for _ in range(400))
    texts = {"zh": chinese, "zh2": f"{chinese}这是新的。", "other": chinese[::-1], "th": thai, "th2": f"{thai}ใหม่"}
    source = write_lines(tmp_path / "in.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    make(source, tmp_path / "out", near_duplicates={}, validation_fraction=0)
    assert near(tmp_path / "out") == {"zh2": "zh", "th2": "th"}


def test_documents_without_words_and_short_ones(tmp_path: Path) -> None:
    """Two texts without a word are no near-duplicates of each other; of short ones all words must be the same."""
    texts = ["...", "!!!", "one two", "One, two!", "one three", "---\n***", "one two three four five six"]
    source = write_lines(tmp_path / "in.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    make(source, tmp_path / "out", near_duplicates={}, validation_fraction=0)
    assert near(tmp_path / "out") == {"3": "2"}


def test_exact_duplicates_are_listed_as_such(tmp_path: Path) -> None:
    text = re.sub(r"^ +", "", " ".join(f"word{n}" for n in range(200)))
    texts = {"a": text, "b": text.upper(), "c": f"{text} more", "d": f"{text} more"}
    source = write_lines(tmp_path / "in.jsonl", [{"id": name, "text": value} for name, value in texts.items()])
    make(source, tmp_path / "out", near_duplicates={}, validation_fraction=0)
    assert {line["id"]: line["reason"] for line in rejected(tmp_path / "out")} == {
        "b": "duplicate",
        "d": "duplicate",
        "c": "near_duplicate",
    }


def test_off_by_default(tmp_path: Path) -> None:
    manifest = make(write_lines(tmp_path / "in.jsonl", planted(3, 3)), tmp_path / "out", validation_fraction=0)
    assert "near_duplicates" not in manifest.config
    assert manifest.near_duplicates is None
    assert not manifest.rejected.total
