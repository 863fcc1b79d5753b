"""The command that talks to a model."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete

if TYPE_CHECKING:
    from ropewalk.jobs.inference.scoring.chat import Chat


def chat(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    model: Annotated[
        str, typer.Argument(metavar="RUN|DIR", help="a run that trains or serves, or a directory", autocompletion=complete.runs)
    ],
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0: the likeliest token, always")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="draw from tokens of this share together")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="tokens of an answer at most")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="the same words and seed get the same answers")] = 0,
) -> None:
    """Talk to a model: a line is what you say; an empty line or Ctrl-D ends it. From a pipe, each line is answered by one."""
    from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat, find_endpoint
    from ropewalk.jobs.inference.scoring.generate import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    opened: Chat | EndpointChat
    if (endpoint := find_endpoint(model)) is not None:
        opened = EndpointChat(endpoint, sampling, system=system, seed=seed)
    else:
        from ropewalk.jobs.inference.scoring.chat import open_chat

        opened = open_chat(model, sampling, system=system, seed=seed)
    at_terminal = sys.stdin.isatty()
    while True:
        try:
            words = input("> ") if at_terminal else next(sys.stdin).rstrip("\n")
        except (EOFError, StopIteration):
            return
        if not words.strip():
            return
        print(opened.answer(words), flush=True)
