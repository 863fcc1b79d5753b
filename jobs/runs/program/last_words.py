"""What a program said last: the exceptions that it printed, which of them tells most, and where that was raised."""

import re
from dataclasses import dataclass

from ropewalk.cluster.text import CAUSED_BY

MESSAGE_LINES = 4  # of an exception that goes on over several lines
MESSAGE_LETTERS, CAUSE_LETTERS = 500, 250
TELLING_LINES, ENDING_LINES = 3, 30  # of a program that prints no exception

# what others say behind the program's last words: torchrun of its rank, Python's fault handler of a signal
_OTHERS = re.compile(
    r"^(?! +File ).*(?:torch/distributed/elastic/|torch\.distributed\.elastic|"
    r"Sending process \d+ closing signal|Fatal Python error: )",
    re.MULTILINE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(  # who says a line: a rank, a process of Ray or vLLM, a task of srun; the tree of an exception group
    r"^(?:\[(?:rank|default)\d+\]: ?|\([\w.:<>-]+ (?:pid=|rank=)\d+[^)]*\) ?|(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[\S+\] ?"
    r"|\s*\d{1,4}: (?=Traceback|  File |    |[\w.]+Error)"
    r"|\s+[|+] (?=Exception Group|Traceback|  |[A-Za-z_.]+(?:Error|Exception|Group)))+"
)
_FRAME = re.compile(r'^\s+File "(.*)", line \d+(, in .*)?$')
_LIBRARY = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python\d|^<frozen|^<string>")
_SYNTAX = re.compile(r"(Syntax|Indentation|Tab)Error")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failure|Timeout)(\([\w.]+\))?(: .*)?$")
# below frames also names that say nothing of an error: zipfile.BadZipFile, queue.Empty, zlib.error
_BELOW_FRAMES = re.compile(
    r"^(?!Message: |Arguments: )(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*|error|gaierror|timeout)(\([\w.]+\))?(: .*|:)?$"
)
_NATIVE = re.compile(r"^(terminate called after throwing|\s+what\(\): |thread '.*' panicked at)")
_LINK = re.compile(r"^(During handling of the above exception|The above exception was the direct cause)")
_NO_ERROR = re.compile(r"^(Exception ignored |--- Logging error ---|Error in sys\.excepthook|Error in atexit)")
_NEXT_SPEAKER = re.compile(
    r"^(wandb:|srun: |slurmstepd: |\[?[EW]\d{3,4} |Exception ignored |[-=]{8})"
    r"|^(Original exception was|Set the environment variable HYDRA)|Traceback \(most recent"
)
# exceptions that only follow from another one, of a launcher, a parent or a rank whose peer is gone
_FOLLOWS = re.compile(
    r"^\S*(ChildFailedError|CalledProcessError|EngineDeadError|KeyboardInterrupt|SystemExit|BrokenPipeError|ConnectionResetError"
    r"|CancelledError|queue\.Empty|EOFError$|can only test a child process)|Engine core initialization failed|ncclRemoteError"
    r"|Connection (closed|reset) by peer|(can only test a child process)|Socket Timeout|NCCL communicator was aborted"
)
_KILLED = re.compile(r"Signal \d+ \(SIG\w+\) received by PID \d+")  # torchrun of a rank that said nothing of it
_STACK = re.compile(r"most recent call first\):\n((?:\s+File .*\n?)+)")  # of Python's fault handler
_TELLING = re.compile(
    r"error|fatal|fail|cannot|can't|could not|not (found|enough|set|permitted|support|allowed|available|exist)|denied|no such"
    r"|invalid|unable|refus|kill|abort|panic|fault|out of|exceed|expired|timed? ?out|limit|lost|unexpected|exception|dumped",
    re.IGNORECASE,
)
_NOISE = re.compile(
    r"^(srun: (Terminating|launch/|Job step aborted)|srun: error: .*task.*: (Exited|Terminated|Killed|Aborted)"
    r"|slurmstepd: error: \*\*\* STEP .* CANCELLED AT [\dT:-]+ \*\*\*|wandb: |make: \*\*\*|usage: |In: PMI|For more information"
    r"|Set the environment variable HYDRA_FULL_ERROR)|\d+%\|.*\||^[-=*#\s]*$"
)


@dataclass(frozen=True)
class Printed:
    """An exception as it was printed."""

    words: str
    frames: tuple[tuple[str, ...], ...]  # of each its file with the line, and the code there
    follows: bool  # printed as raised while the one before it was handled, or because of it

    @property
    def place(self) -> list[str]:
        """The innermost frame outside of libraries; empty if there is none."""
        return next((list(frame) for frame in reversed(self.frames) if not _LIBRARY.search(frame[0].split('"')[1])), [])


def last_words(text: str) -> str:
    """The exception that a program failed of, with what caused it; else its last lines that say something."""
    own = _lines(text)
    chain = _decisive(_printed(own))
    if chain:
        words, deepest = chain[-1].words, chain[0].words
        return words if deepest in words else f"{words}{CAUSED_BY}{deepest[:CAUSE_LETTERS]}"
    said = [line.strip() for line in own if re.search(r"\w", line)]
    ending = [line for line in said[-ENDING_LINES:] if not _NOISE.search(line)]
    killed = _KILLED.findall(text)[-1:]
    telling = killed or list(dict.fromkeys(line for line in ending if _TELLING.search(line)))[-TELLING_LINES:]
    return " ".join(telling or ending[-1:] or said[-1:])[:MESSAGE_LETTERS]


def innermost_frame(text: str) -> list[str]:
    """File, line and code where the program itself was as it failed; empty where it printed no frames.

    Of an exception that wraps others it is the place of the first of them. If all of their frames are a library's, as in a
    loader's worker, it is that of the exception printed before, or behind; else the library's own.
    """
    printed = _printed(_lines(text))
    chain = _decisive(printed)
    if not chain:
        stack = [line.strip() for found in [_STACK.search(text)] if found for line in found[1].splitlines()]
        return [line for line in stack if not _LIBRARY.search(line.split('"')[1])][:1] or stack[:1]
    at = printed.index(chain[0])
    own = next((one.place for one in (*chain, *reversed(printed[:at]), *printed[at:]) if one.place), [])
    return own or next((list(one.frames[-1]) for one in reversed(chain) if one.frames), [])


def _lines(text: str) -> list[str]:
    """What the program itself said last, without what marks who says a line."""
    own = _OTHERS.split(text, maxsplit=1)[0]
    return [_PREFIX.sub("", _COLOUR.sub("", line)).rstrip() for line in (own if own.strip() else text).splitlines()]


def _printed(lines: list[str]) -> list[Printed]:
    """All exceptions that were printed, save those that Python prints and goes on."""
    found: list[Printed] = []
    frames: list[tuple[str, ...]] = []
    follows = ignored = False
    for number, line in enumerate(lines):
        if _FRAME.match(line):
            code = [below.strip() for below in lines[number + 1 : number + 2] if below[:1].isspace() and not _FRAME.match(below)]
            frames.append((line.strip(), *code))
        elif _LINK.match(line):
            follows = True
        elif _NO_ERROR.match(line):
            ignored = True
        elif _EXCEPTION.match(line) or _NATIVE.match(line) or (frames and _BELOW_FRAMES.match(line)):
            if not ignored:
                found.append(Printed(_message(lines, number), tuple(frames), follows))
            frames, follows, ignored = [], False, False
    return found


def _message(lines: list[str], number: int) -> str:
    """An exception's message from its line on; of an error of syntax also the code above it."""
    message = [lines[number].strip()]
    for line in lines[number + 1 :]:
        if len(message) == MESSAGE_LINES or _NEXT_SPEAKER.search(line) or _LINK.match(line) or _EXCEPTION.match(line):
            break
        message += [line.strip()] if re.search(r"\w", line) else []
    code = [line.strip() for line in lines[max(0, number - 2) : number]] if _SYNTAX.match(lines[number]) else []
    return " ".join((*message, *code))[:MESSAGE_LETTERS]


def _decisive(printed: list[Printed]) -> list[Printed]:
    """The last exception that does not merely follow from another, behind those that it wraps."""
    last = next((n for n in reversed(range(len(printed))) if not _FOLLOWS.search(printed[n].words)), len(printed) - 1)
    first = last
    while first > 0 and printed[first].follows:
        first -= 1
    return printed[first : last + 1]
