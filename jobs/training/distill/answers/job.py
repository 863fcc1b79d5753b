"""Query a served teacher prompt by prompt; each answer is written immediately and never requested again."""

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
    """Answer every question, then write the conversations; returns counts. Raises StopRequested."""
    config = context.config(AnswersConfig)
    rejected: Counter[str] = Counter()
    all_questions = list(questions(config, rejected))
    if not all_questions:
        raise DataError(f"prompts: {config.prompts} has no usable prompt ({dict(rejected)}); check its records")
    ledger = Ledger(context, LEDGER)
    endpoint = Endpoint(config)
    try:
        _ask_all(context, config, ledger, endpoint, [question for question in all_questions if question.key not in ledger])
    finally:
        endpoint.close()
    return _conclude(context, config, ledger, all_questions, rejected)


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
                raise StopRequested(f"{len(ledger)} answers are stored")
            while waiting and len(under_way) < config.at_once:
                question = waiting.pop()
                under_way[pool.submit(endpoint.ask, question, model)] = question
            done, _ = wait(under_way, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                ledger.add(under_way.pop(future).key, {"model": model, **future.result()})
    ledger.sync()


def _conclude(
    context: JobContext, config: AnswersConfig, ledger: Ledger, all_questions: list[Question], rejected: Counter[str]
) -> dict[str, object]:
    lines = []
    for question in all_questions:
        record = ledger.get(question.key)
        assert record is not None, "all are answered"
        if "rejected" in record:
            rejected[record["rejected"]] += 1
            continue
        messages = [*question.messages, {"role": "assistant", "content": record["answer"]}]
        lines.append(json.dumps({"id": question.key, "messages": messages}, ensure_ascii=False) + "\n")
    if not lines:
        raise DataError(f"endpoint: {config.endpoint} gave no usable answer: {dict(rejected)}")
    context.fence.check()
    Path(config.output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(config.output), "".join(lines).encode())
    return {"output": config.output, "answers": len(lines), "rejected": sum(rejected.values()), "reasons": dict(rejected)}
