"""What a model writes by itself: personal data in it, and what plug-ins say of it."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ropewalk.datapipe.filters.privacy.detect import find
from ropewalk.jobs.evaluation.audit.asking.question import Answer, Judged, Question, Writing
from ropewalk.jobs.evaluation.audit.config import SamplesConfig
from ropewalk.jobs.evaluation.audit.measures.scorers import TextScorer, judge_texts
from ropewalk.jobs.inference.scoring.encode import encode
from ropewalk.jobs.inference.scoring.generate import Sampling
from ropewalk.jobs.inference.scoring.open_model import OpenModel
from ropewalk.jobs.results.score import hash_of, mean_score

RATE = "pii_rate"


class Samples:
    """Texts drawn from the seed, each by its own number, so that they are the same at any number of ranks."""

    def __init__(self, config: SamplesConfig, scorers: list[TextScorer], seed: int) -> None:
        self.config, self.scorers, self.seed = config, scorers, seed

    def score_names(self) -> list[str]:
        """The share of samples with personal data, and what plug-ins flag."""
        return [RATE, *(f"samples/{one.name}" for one in self.scorers)]

    def questions(self, opened: OpenModel) -> list[Question]:
        """The prompts in turn."""
        config = self.config
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        prompts = [tuple(encode(opened, prompt)) if prompt else (opened.prefix,) for prompt in config.prompts]
        return [
            Writing(key=f"sample:{number}", prompt=prompts[number % len(prompts)], sampling=sampling, number=number)
            for number in range(config.n)
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Each sample with what was found in it; the texts are in the items."""
        texts = [str(answers[f"sample:{number}"]["text"]) for number in range(self.config.n)]
        kinds: Counter[str] = Counter()
        items = []
        for number, text in enumerate(texts):
            found = [str(span.kind) for span in find(text)]
            kinds.update(set(found))
            prompt = self.config.prompts[number % len(self.config.prompts)]
            item: dict[str, Any] = {"measure": "samples", "key": f"sample:{number}", "value": float(bool(found)), "pii": found}
            items.append({**item, "group": f"sample:{number}", "prompt": prompt, "text": text})
        asked = hash_of(self.config.model_dump(mode="json"), self.seed)
        scores = {RATE: mean_score([item["value"] for item in items], hash=asked)}
        rows = [{"kind": kind, "samples": count, "share": count / len(texts)} for kind, count in kinds.most_common()]
        judged = Judged(
            scores=scores,
            items=items,
            tables={"Personal data in samples": rows or [{"kind": "none found", "samples": 0, "share": 0.0}]},
            notes=["What no pattern recognizes, such as names, is not counted as personal data."],
            plots={},
        )
        return judge_texts(judged, "samples", self.scorers, texts, asked)
