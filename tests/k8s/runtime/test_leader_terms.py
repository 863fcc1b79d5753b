"""Terms of leaders: of two pods one gets each, and all know at once, however old their machines' caches are."""

import os
from pathlib import Path

import pytest

from ropewalk.cluster.run.directory import RunDir
from ropewalk.k8s.runtime.leader_terms import LeaderTerm, LeaderTerms
from tests.fakes.nfs import Network


def term_of(pod: str, number: int) -> LeaderTerm:
    return LeaderTerm(number=number, pod=pod, uid=pod, index=0, address="10.0.0.1", port=1)


@pytest.fixture
def terms(tmp_path: Path) -> LeaderTerms:
    return LeaderTerms(RunDir.create("toy", {"config": {}}, tmp_path))


def test_of_two_pods_one_gets_the_term(terms: LeaderTerms) -> None:
    assert terms.newest() is None
    assert terms.take(term_of("a", 1))
    assert not terms.take(term_of("b", 1))
    assert terms.newest() == term_of("a", 1)
    assert not terms.has_left(term_of("a", 1))
    terms.leave(term_of("a", 1))
    assert terms.has_left(term_of("a", 1))
    second = term_of("b", 2)
    assert terms.take(second)
    assert (terms.newest(), terms.before(second), terms.before(term_of("a", 1))) == (second, term_of("a", 1), None)


def test_a_term_that_is_being_written_is_nobodys_yet(terms: LeaderTerms, tmp_path: Path) -> None:
    """The pod that began it may have died before it could tell: whoever wants it too tells in its place."""
    (file,) = (folder / "000001" for folder in tmp_path.rglob("carriers"))
    file.touch()
    assert terms.newest() is None
    assert not terms.take(term_of("b", 1))
    result = terms.newest()
    assert result is not None
    assert result.unfinished
    os.utime(file, (1, 1))
    result = terms.newest()
    assert result is not None
    assert not result.unfinished
    assert terms.take(term_of("b", 2))


def test_two_machines_know_at_once_who_leads(network: Network) -> None:
    """A listing, and a name that was missing a moment ago, may each be a minute old there."""
    run = RunDir.create("shared", {"config": {}}, network.client())
    here, there = LeaderTerms(run), LeaderTerms(RunDir(network.client() / run.id))
    assert (here.newest(), there.newest()) == (None, None)
    first, second = term_of("a", 1), term_of("b", 2)
    assert here.take(first)
    assert not there.take(term_of("b", 1))
    assert there.newest() == first
    assert there.key_of(first) == here.key_of(first)
    assert not there.has_left(first)
    here.leave(first)
    assert there.has_left(first)
    assert there.take(second)
    assert here.newest() == second
    assert here.after(first) == second
    assert here.after(second) is None
