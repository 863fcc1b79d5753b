"""The journal, the extents in it and the kernel's counters: what a successor is told is what was."""

import random
import socket
from contextlib import suppress

import pytest

from ropewalk.jobs.serving.serve.gateway.sockets.blocks import BLOCK_BYTES, Blocks, Extent, JournalFullError
from ropewalk.jobs.serving.serve.gateway.sockets.channel import Kind, pair, receive, send
from ropewalk.jobs.serving.serve.gateway.sockets.journal import Field, Header, Journal, create_journal
from ropewalk.jobs.serving.serve.gateway.sockets.kernel import progress
from ropewalk.jobs.serving.serve.gateway.sockets.tape import Tape


def test_extents_never_overlap_and_all_comes_back() -> None:
    draw = random.Random(0)
    blocks, taken = Blocks(1000), set[Extent]()
    for _ in range(3000):
        if draw.random() < 0.55:
            with suppress(JournalFullError):
                taken.add(blocks.take(draw.randrange(1, 40 * BLOCK_BYTES)))
        elif taken:
            blocks.give_back(taken.pop())
    used = sorted(number for extent in taken for number in range(extent.first, extent.first + extent.num_blocks))
    assert len(used) == len(set(used)) == 1000 - blocks.free_blocks
    again = Blocks(1000, taken)
    assert again.free_blocks == blocks.free_blocks
    for extent in taken:
        again.give_back(extent)
    assert again.take(512 * BLOCK_BYTES).num_blocks == 512


def test_another_process_would_read_what_was_written() -> None:
    descriptor = create_journal(num_records=8, num_bytes=2**24)
    journal = Journal(descriptor)
    record = journal.take_record(77)
    tape = Tape(journal, record, Field.OUTPUT, 0, 2**20)
    sent = bytes(range(256)) * 500
    for at in range(0, len(sent), 1000):
        tape.append(sent[at : at + 1000])
    journal.write(record, Field.OUTPUT_END, tape.end)
    tape.drop(50_000)
    journal.write_note(record, b'{"v": "tiny@1"}')
    remaining = journal.keep(b"an exchange that is over")
    other = Journal(descriptor)
    assert list(other.records()) == [(record, 77)]
    assert other.read_note(record) == b'{"v": "tiny@1"}'
    same = Tape(other, record, Field.OUTPUT, other.read(record, Field.OUTPUT_END), 2**20)
    assert bytes(same.read(50_000, len(sent))) == sent[50_000:]
    assert list(other.kept()) == [(remaining, b"an exchange that is over")]
    assert other.blocks.free_blocks == journal.blocks.free_blocks
    same.drop(len(sent))
    other.forget(remaining)
    other.free_record(record)
    assert Journal(descriptor).blocks.free_blocks == 2**24 // BLOCK_BYTES
    assert other.add_to_header(Header.EXCHANGES) == 1


def test_a_full_journal_says_so() -> None:
    journal = Journal(create_journal(num_records=1, num_bytes=2**20))
    tape = Tape(journal, journal.take_record(1), Field.INPUT, 0, 2**30)
    with pytest.raises(JournalFullError):
        tape.room(2**21)
    assert len(tape.room(2**18)) >= 2**18


def test_the_kernel_counts_what_processes_read_and_wrote() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        served, _ = listening.accept()
        client.sendall(b"x" * 100)
        served.recv(40)
        served.setblocking(False)
        written = 0
        with suppress(BlockingIOError):
            while True:
                written += served.send(b"y" * 100_000)
        assert progress(served) == (40, written, True)
        client.recv(1000)
        assert progress(served)[:2] == (40, written)
        client.shutdown(socket.SHUT_WR)
        served.setblocking(True)
        while served.recv(100):
            pass
        assert progress(served) == (100, written, False)
        client.close()
        served.close()


def test_sockets_travel_in_messages() -> None:
    ours, theirs = pair()
    first, other = socket.socketpair()
    send(ours, Kind.CONNECTIONS, 0, [5, 2**40], [first.fileno(), first.fileno()])
    message = receive(theirs)
    assert message is not None
    assert message.numbers == (5, 2**40)
    for handle in message.sockets:
        with socket.socket(fileno=handle) as copy:
            copy.send(b"z")
    assert other.recv(10) == b"zz"
    ours.close()
    assert receive(theirs) is None
    for end in (theirs, first, other):
        end.close()
