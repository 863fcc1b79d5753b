"""Generated texts: personal data in them, and the judgement of plug-ins."""

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
    """Texts drawn from the seed and their own number, equal at any number of ranks."""

    def __init__(self, config: SamplesConfig, scorers: list[TextScorer], seed: int) -> None:
        self.config, self.scorers, self.seed = config, scorers, seed

    def score_names(self) -> list[str]:
        """Return the names of the share of samples with personal data, and of the plug-ins."""
        return [RATE, *(f"samples/{scorer.name}" for scorer in self.scorers)]

    def questions(self, opened: OpenModel) -> list[Question]:
        """Return the prompts in turn."""
        config = self.config
        sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)
        prompts = [tuple(encode(opened, prompt)) if prompt else (opened.prefix,) for prompt in config.prompts]
        return [
            Writing(key=f"sample:{number}", prompt=prompts[number % len(prompts)], sampling=sampling, number=number)
            for number in range(config.n)
        ]

    def judge(self, answers: Mapping[str, Answer]) -> Judged:
        """Return each sample with the personal data found; the items hold the texts."""
        texts = [str(answers[f"sample:{number}"]["text"]) for number in range(self.config.n)]
        kinds: Counter[str] = Counter()
        items = []
        for number, text in enumerate(texts):
            kinds_of_text = [str(span.kind) for span in find(text)]
            kinds.update(set(kinds_of_text))
            prompt = self.config.prompts[number % len(self.config.prompts)]
            item: dict[str, Any] = {
                "measure": "samples",
                "key": f"sample:{number}",
                "value": float(bool(kinds_of_text)),
                "pii": kinds_of_text,
            }
            items.append({**item, "group": f"sample:{number}", "prompt": prompt, "text": text})
        content_hash = hash_of(self.config.model_dump(mode="json"), self.seed)
        scores = {RATE: mean_score([item["value"] for item in items], hash=content_hash)}
        rows = [{"kind": kind, "samples": count, "share": count / len(texts)} for kind, count in kinds.most_common()]
        judged = Judged(
            scores=scores,
            items=items,
            tables={"Personal data in samples": rows or [{"kind": "none found", "samples": 0, "share": 0.0}]},
            notes=["What no pattern recognizes, such as names, is not counted as personal data."],
            plots={},
        )
        return judge_texts(judged, "samples", self.scorers, texts, content_hash)
