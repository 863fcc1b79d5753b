"""Ask a served teacher, prompt by prompt; whatever is answered is written down at once and never asked for again."""

import json
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ropewalk.cluster.errors import DataError, StopRequested
from ropewalk.cluster.run.context import JobContext
from ropewalk.cluster.run.files import write_atomically
from ropewalk.jobs.runs.program.finished import Ledger
from ropewalk.jobs.training.distill.answers.config import AnswersConfig
from ropewalk.jobs.training.distill.answers.endpoint import Endpoint
from ropewalk.jobs.training.distill.answers.questions import Question, questions

LEDGER = "answers"
_LOOK_SECONDS = 0.5


def main(context: JobContext) -> dict[str, object]:
    """Have every question answered, then write the conversations; returns what was counted. Raises StopRequested."""
    config = context.config(AnswersConfig)
    rejected: Counter[str] = Counter()
    asked = list(questions(config, rejected))
    if not asked:
        raise DataError(f"prompts: {config.prompts} has no prompt that can be asked ({dict(rejected)}); check its records")
    ledger = Ledger(context, LEDGER)
    endpoint = Endpoint(config)
    try:
        _ask_all(context, config, ledger, endpoint, [one for one in asked if one.key not in ledger])
    finally:
        endpoint.close()
    return _conclude(context, config, ledger, asked, rejected)


def _ask_all(context: JobContext, config: AnswersConfig, ledger: Ledger, endpoint: Endpoint, open_: list[Question]) -> None:
    if not open_:
        return
    model, waiting = endpoint.model(), list(reversed(open_))
    under_way: dict[Future[dict[str, Any]], Question] = {}
    with ThreadPoolExecutor(config.at_once) as pool:
        while waiting or under_way:
            if context.stop_requested():
                pool.shutdown(wait=False, cancel_futures=True)
                endpoint.close()
                raise StopRequested(f"{len(ledger)} answers are kept")
            while waiting and len(under_way) < config.at_once:
                question = waiting.pop()
                under_way[pool.submit(endpoint.ask, question, model)] = question
            done, _ = wait(under_way, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                ledger.add(under_way.pop(future).key, {"model": model, **future.result()})
    ledger.sync()


def _conclude(
    context: JobContext, config: AnswersConfig, ledger: Ledger, asked: list[Question], rejected: Counter[str]
) -> dict[str, object]:
    lines = []
    for question in asked:
        record = ledger.get(question.key)
        assert record is not None, "all are answered"
        if "rejected" in record:
            rejected[record["rejected"]] += 1
            continue
        messages = [*question.messages, {"role": "assistant", "content": record["answer"]}]
        lines.append(json.dumps({"id": question.key, "messages": messages}, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"endpoint: {config.endpoint} gave no answer that can be learnt from: {dict(rejected)}")
    context.fence.check()
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.output), "".join(lines).encode())
    return {"output": config.output, "answers": len(lines), "rejected": sum(rejected.values()), "reasons": dict(rejected)}
