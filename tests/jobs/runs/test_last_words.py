"""Reading of the end of a program's log: the decisive exception, its cause, and the program's line."""

import pytest

from ropewalk.jobs.runs.program.last_words import innermost_frame, last_words

TRACE = "Traceback (most recent call last):\n"
MAIN = '  File "/home/me/train.py", line 12, in <module>\n    main()\n'
LIBRARY = (
    '  File "/opt/env/lib/python3.11/site-packages/torch/nn/modules/module.py", line 1751, in _call_impl\n    return forward(x)\n'
)
OWN = ['File "/home/me/train.py", line 12, in <module>', "main()"]
OTHER = '  File "/home/me/data.py", line 9, in read\n    row["text"]\n'
BAD = f"{TRACE}{MAIN}ValueError: bad\n"
IGNORED = f"Exception ignored in: <function Loader.__del__ at 0x7f>\n{TRACE}{OTHER}AttributeError: file\n"
WORKER = (
    f"{TRACE}{MAIN}RuntimeError: Caught RuntimeError in DataLoader worker process 0.\nOriginal {TRACE}{LIBRARY}RuntimeError: x\n"
)
CRASH = "step 4\nFatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"


def marked(text: str, mark: str) -> str:
    """Each line as somebody says it who marks his lines."""
    return "".join(f"{mark}{line}\n" for line in text.splitlines())


@pytest.mark.parametrize(
    ("log", "message", "location"),
    [
        (f"{TRACE}{MAIN}{LIBRARY}RuntimeError: shapes\n", "RuntimeError: shapes", OWN),
        (marked(BAD, "[rank0]: "), "ValueError: bad", OWN),
        (marked(BAD, "[default1]:"), "ValueError: bad", OWN),
        (marked(BAD, "(train pid=7, ip=10.0.0.1) "), "ValueError: bad", OWN),
        (marked(BAD, "\x1b[36m(EngineCore_0 pid=7)\x1b[0m ERROR 11-27 10:00:01 [core.py:700] "), "ValueError: bad", OWN),
        (marked(BAD, " 3: "), "ValueError: bad", OWN),
        (f"{TRACE}{MAIN}zipfile.BadZipFile: File is not a zip file\n", "zipfile.BadZipFile: File is not a zip file", OWN),
        (f"{TRACE}{MAIN}zlib.error: Error -3\n", "zlib.error: Error -3", OWN),
        (
            f"{TRACE}{OTHER}KeyError: 'text'\n\nThe above exception was the direct cause of the following exception:\n\n"
            f"{TRACE}{MAIN}RuntimeError: it failed\n",
            "RuntimeError: it failed; caused by: KeyError: 'text'",
            ['File "/home/me/data.py", line 9, in read', 'row["text"]'],
        ),
        (
            f"{BAD}Exception ignored in: <function Loader.__del__ at 0x7f>\n{TRACE}{OTHER}AttributeError: file\n",
            "ValueError: bad",
            OWN,
        ),
        (
            f'{BAD}{TRACE}  File "/opt/accelerate", line 8, in <module>\n    sys.exit(main())\n'
            "subprocess.CalledProcessError: Command '['python', 'train.py']' returned non-zero exit status 1.\n",
            "ValueError: bad",
            OWN,
        ),
        (
            marked(BAD, "[rank1]: ")
            + marked(f"{TRACE}{OTHER}RuntimeError: Connection closed by peer [10.0.0.5]:3211", "[rank0]: "),
            "ValueError: bad",
            OWN,
        ),
        (WORKER, "RuntimeError: x", OWN),
        (
            "  + Exception Group Traceback (most recent call last):\n  | ExceptionGroup: in a TaskGroup (1 sub-exception)\n"
            f"  +-+---------------- 1 ----------------\n{marked(BAD, '    | ')}    +------------------------------------\n",
            "ValueError: bad",
            OWN,
        ),
        (
            "step 4\nterminate called after throwing an instance of 'c10::Error'\n  what():  CUDA error: misaligned address\n",
            "what():  CUDA error: misaligned address",
            [],
        ),
        (
            f'{CRASH}{LIBRARY.splitlines()[0]}\n  File "/home/me/train.py", line 12 in step\n',
            "step 4",
            ['File "/home/me/train.py", line 12 in step'],
        ),
        (
            "step 4\nE1127 14:53 9 torch/distributed/elastic/multiprocessing/api.py:869] failed (exitcode: -9)\n"
            "  traceback : Signal 9 (SIGKILL) received by PID 12\n",
            "Signal 9 (SIGKILL) received by PID 12",
            [],
        ),
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0.\nsrun: Terminating StepId=1.0\n",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0.",
            [],
        ),
        (
            "usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --x\n",
            "train.py: error: unrecognized arguments: --x",
            [],
        ),
    ],
)
def test_the_exception_that_decided_is_found(log: str, message: str, location: list[str]) -> None:
    assert last_words(log) == message
    assert innermost_frame(log) == location
