"""Extraction of the decisive exception, and where it was raised, from a program's output."""

import re
from dataclasses import dataclass

from ropewalk.cluster.text import CAUSED_BY

MESSAGE_LINES = 4  # of a multi-line exception message
MESSAGE_LETTERS, CAUSE_LETTERS = 500, 250
TELLING_LINES, ENDING_LINES = 3, 30  # for programs that print no exception

# output of others after the program's own: torchrun about its rank, Python's fault handler about a signal
_OTHERS = re.compile(
    r"^(?! +File ).*(?:torch/distributed/elastic/|torch\.distributed\.elastic|"
    r"Sending process \d+ closing signal|Fatal Python error: )",
    re.MULTILINE,
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(  # origin of a line: a rank, a process of Ray or vLLM, a task of srun; or the tree of an exception group
    r"^(?:\[(?:rank|default)\d+\]: ?|\([\w.:<>-]+ (?:pid=|rank=)\d+[^)]*\) ?|(?:ERROR|CRITICAL) \d\d-\d\d [\d:]+ \[\S+\] ?"
    r"|\s*\d{1,4}: (?=Traceback|  File |    |[\w.]+Error)"
    r"|\s+[|+] (?=Exception Group|Traceback|  |[A-Za-z_.]+(?:Error|Exception|Group)))+"
)
_FRAME = re.compile(r'^\s+File "(.*)", line \d+(, in .*)?$')
_LIBRARY = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python\d|^<frozen|^<string>")
_SYNTAX = re.compile(r"(Syntax|Indentation|Tab)Error")
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failure|Timeout)(\([\w.]+\))?(: .*)?$")
# after frames also exceptions whose names do not look like errors: zipfile.BadZipFile, queue.Empty, zlib.error
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
# consequences of another exception: of a launcher, a parent process, or a rank that lost a peer
_FOLLOWS = re.compile(
    r"^\S*(ChildFailedError|CalledProcessError|EngineDeadError|KeyboardInterrupt|SystemExit|BrokenPipeError|ConnectionResetError"
    r"|CancelledError|queue\.Empty|EOFError$|can only test a child process)|Engine core initialization failed|ncclRemoteError"
    r"|Connection (closed|reset) by peer|(can only test a child process)|Socket Timeout|NCCL communicator was aborted"
)
_KILLED = re.compile(r"Signal \d+ \(SIG\w+\) received by PID \d+")  # torchrun's message about a killed rank
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
    """An exception as printed by the program."""

    text: str
    frames: tuple[tuple[str, ...], ...]  # for each frame: the line with file and number, and the line of code
    follows: bool  # chained to the preceding exception

    @property
    def user_frame(self) -> list[str]:
        """Innermost frame outside of libraries; empty if there is none."""
        return next((list(frame) for frame in reversed(self.frames) if not _LIBRARY.search(frame[0].split('"')[1])), [])


def last_words(text: str) -> str:
    """Return the exception that ended a program with its cause, else its last meaningful lines."""
    lines = _lines(text)
    chain = _decisive(_printed(lines))
    if chain:
        message, cause = chain[-1].text, chain[0].text
        return message if cause in message else f"{message}{CAUSED_BY}{cause[:CAUSE_LETTERS]}"
    nonempty = [line.strip() for line in lines if re.search(r"\w", line)]
    ending = [line for line in nonempty[-ENDING_LINES:] if not _NOISE.search(line)]
    killed = _KILLED.findall(text)[-1:]
    telling = killed or list(dict.fromkeys(line for line in ending if _TELLING.search(line)))[-TELLING_LINES:]
    return " ".join(telling or ending[-1:] or nonempty[-1:])[:MESSAGE_LETTERS]


def innermost_frame(text: str) -> list[str]:
    """Return file, line and code of the user's frame in which the program failed; empty if it printed no frames.

    For chained exceptions this is a frame of the first one. If all of their frames belong to libraries, as in a worker of a
    data loader, a frame of another printed exception is used, and otherwise the library's frame.
    """
    printed = _printed(_lines(text))
    chain = _decisive(printed)
    if not chain:
        stack = [line.strip() for match in [_STACK.search(text)] if match for line in match[1].splitlines()]
        return [line for line in stack if not _LIBRARY.search(line.split('"')[1])][:1] or stack[:1]
    at = printed.index(chain[0])
    candidates = (*chain, *reversed(printed[:at]), *printed[at:])
    user_frame = next((each.user_frame for each in candidates if each.user_frame), [])
    return user_frame or next((list(each.frames[-1]) for each in reversed(chain) if each.frames), [])


def _lines(text: str) -> list[str]:
    """Return the lines of the program itself, without prefixes and colours."""
    program = _OTHERS.split(text, maxsplit=1)[0]
    return [_PREFIX.sub("", _COLOUR.sub("", line)).rstrip() for line in (program if program.strip() else text).splitlines()]


def _printed(lines: list[str]) -> list[Printed]:
    """Return all printed exceptions, except those that Python ignores."""
    exceptions: list[Printed] = []
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
                exceptions.append(Printed(_message(lines, number), tuple(frames), follows))
            frames, follows, ignored = [], False, False
    return exceptions


def _message(lines: list[str], number: int) -> str:
    """Return an exception's message that starts at a line; for a syntax error with the code above it."""
    message = [lines[number].strip()]
    for line in lines[number + 1 :]:
        if len(message) == MESSAGE_LINES or _NEXT_SPEAKER.search(line) or _LINK.match(line) or _EXCEPTION.match(line):
            break
        message += [line.strip()] if re.search(r"\w", line) else []
    code = [line.strip() for line in lines[max(0, number - 2) : number]] if _SYNTAX.match(lines[number]) else []
    return " ".join((*message, *code))[:MESSAGE_LETTERS]


def _decisive(printed: list[Printed]) -> list[Printed]:
    """Return the last exception that is not a mere consequence of another, preceded by the exceptions that it is chained to."""
    last = next((n for n in reversed(range(len(printed))) if not _FOLLOWS.search(printed[n].text)), len(printed) - 1)
    first = last
    while first > 0 and printed[first].follows:
        first -= 1
    return printed[first : last + 1]
