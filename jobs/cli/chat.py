"""The command `chat`: talk to a model."""

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from ropewalk.jobs.cli import complete
from ropewalk.jobs.cli.json_output import print_json

if TYPE_CHECKING:
    from ropewalk.jobs.inference.scoring.chat import Chat


def chat(  # noqa: PLR0917 - typer reads the options of a command from its arguments
    model: Annotated[
        str, typer.Argument(metavar="RUN|DIR", help="a training or serving run, or a directory", autocompletion=complete.runs)
    ],
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="sampling temperature; 0: greedy")] = 0.7,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="nucleus sampling probability")] = 0.95,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="maximum length of an answer, in tokens")] = 256,
    seed: Annotated[int, typer.Option("--seed", help="random seed")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object per answer: prompt, answer")] = False,
) -> None:
    """Chat with a model; an empty line or Ctrl-D ends it. Without a terminal every input line is a prompt and gets one answer."""
    from ropewalk.jobs.runs.models.find_model import find_model

    find_model(model)  # refuses an unknown name before torch is imported
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        print(f"opening {model} ...", file=sys.stderr, flush=True)
    from ropewalk.jobs.inference.scoring.endpoint_chat import EndpointChat, find_endpoint
    from ropewalk.jobs.inference.scoring.generate import Sampling

    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    model_chat: Chat | EndpointChat
    if (endpoint := find_endpoint(model)) is not None:
        model_chat = EndpointChat(endpoint, sampling, system=system, seed=seed)
    else:
        from ropewalk.jobs.inference.scoring.chat import open_chat

        model_chat = open_chat(model, sampling, system=system, seed=seed)
    with closing(model_chat):
        if at_terminal:
            print(f"{model_chat.introduction()}. An empty line ends the conversation.", file=sys.stderr, flush=True)
        while True:
            try:
                message = input("> ") if at_terminal else next(sys.stdin).rstrip("\n")
            except (EOFError, StopIteration):
                return
            if not message.strip():
                return
            answer = model_chat.answer(message)
            if as_json:
                print_json({"prompt": message, "answer": answer})
            else:
                print(answer, flush=True)
