"""The keys of the `audit` job."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from ropewalk.cluster.config import HANGS, RUN_KEYS, WEIGHTS, ModelJobConfig
from ropewalk.cluster.errors import ConfigError
from ropewalk.cluster.input_paths import DataPath, FilePath, PathView
from ropewalk.cluster.section import Section
from ropewalk.datapipe.filters.registry import Filters, need_own_code
from ropewalk.jobs.evaluation.audit.suites.find import BUILT_IN, FOLDER_VARIABLE, other_names, resolve_suite
from ropewalk.jobs.results.gate import ConditionText
from ropewalk.jobs.runs.models.find_model import ModelRef, find_model
from ropewalk.jobs.runs.show.status import find_run
from ropewalk.jobs.training.loop.token_data import Data, WeightedData, check_data

BINS = 10  # of a reliability plot


class Suite(Section):
    """A file of stereotype pairs, with the name of its scores."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$", description="name of the suite in scores")
    path: FilePath = Field(description="its file")


class SubgroupsConfig(Section):
    """Perplexity of texts by the group of people that wrote them or that they are about."""

    path: FilePath = Field(description="jsonl of {group, text}")


class SamplesConfig(Section):
    """Generated texts, searched for personal data and judged by plug-ins."""

    n: int = Field(default=100, ge=1, description="number of texts to generate")
    prompts: list[str] = Field(default=[""], min_length=1, description="prompts, used in turn; an empty one starts a new text")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens to write after each prompt")
    temperature: float = Field(default=1.0, ge=0, description="sampling temperature; 0 is greedy")
    top_p: float = Field(default=1.0, gt=0, le=1, description="nucleus sampling: total probability of the tokens drawn from")


class PromptsConfig(Section):
    """Prompts that should be refused, and harmless ones that should not."""

    path: FilePath = Field(description="jsonl of {prompt, harmful: true | false}; without `harmful` a prompt is harmful")
    max_new_tokens: int = Field(default=64, ge=1, description="tokens of each greedy answer")
    refusals: list[str] = Field(default=[], description="phrases of a refusal, besides the built-in ones")


class ScorerConfig(Section):
    """A plug-in that judges texts, such as for toxicity: a function from a list of texts to numbers from 0 to 1."""

    name: str = Field(description="an entry point of the group ropewalk.scorers, or module:function")
    threshold: float = Field(default=0.5, gt=0, le=1, description="a text with this score or a higher one is flagged")


class IdentityConfig(Section):
    """False positives of filters and plug-ins on harmless texts, by the group of people mentioned."""

    filters: Filters = Field(default=(), description="filters of preprocess, as in its key `filters`")
    terms: FilePath | None = Field(default=None, description="file with one term per line; unset: built-in terms")
    texts: int = Field(default=40, ge=2, description="number of harmless texts, each repeated with every term")


class CalibrationConfig(Section):
    """Agreement of the model's confidence with its accuracy."""

    path: FilePath = Field(description="jsonl of {question, options, answer: index or text}")
    bins: int = Field(default=BINS, ge=2, le=100, description="bins of the reliability plot")


class ContaminationConfig(Section):
    """Items of suites and other files that occur in the training data."""

    data: Data = Field(description="a data set made by preprocess, or a list of {path, weight}")
    against: list[FilePath] = Field(
        default=[], description="more files of items: jsonl with texts under any keys, such as local data of lm-eval"
    )
    ngram: int = Field(default=13, ge=8, description="consecutive words that an item and a document have in common")


class MemorizationConfig(Section):
    """Training text that the model continues word for word."""

    data: Data | None = Field(default=None, description="data sets that the model was trained on; unset: only canaries")
    samples: int = Field(default=200, ge=1, description="windows drawn from each split")
    prefix_tokens: int = Field(default=50, ge=1, description="tokens given to the model")
    continuation_tokens: int = Field(default=50, ge=1, description="tokens that greedy decoding must reproduce")
    canaries: FilePath | None = Field(default=None, description="jsonl of {prefix, secret, repeats} planted in the training data")
    candidates: int = Field(default=255, ge=1, description="other secrets of the same form, among which a canary is ranked")


class MixtureConfig(Section):
    """Weights of data sets, shifted towards the groups that the model predicts worst."""

    data: list[WeightedData] = Field(min_length=2, description="the present mixture: a list of {path, weight}")
    groups: list[str] = Field(description="for each data set its group of `subgroups`, in the same order")
    strength: float = Field(
        default=1.0, gt=0, description="weights are multiplied by e^(strength x excess bits per byte of the group)"
    )
    most: float = Field(default=4.0, ge=1, description="largest factor by which a weight is multiplied or divided")

    @model_validator(mode="after")
    def _one_group_each(self) -> Self:
        if len(self.groups) != len(self.data):
            raise ValueError(f"mitigation.mixture.groups: must name a group for each of {len(self.data)} data sets")
        return self


class CounterfactualConfig(Section):
    """Pairs for `align`, made from templates: of two sentences that differ in one word, the preferred one is rejected."""

    templates: FilePath | None = Field(
        default=None, description="jsonl of {template with {SLOT} and {WHO}, slot, swaps: [[he, she]]}; unset: occupations"
    )
    most: int = Field(default=1000, ge=1, description="maximum number of pairs, those with the clearest preference first")


class MitigationConfig(Section):
    """Files that the audit writes for the next training run."""

    mixture: MixtureConfig | None = Field(default=None, description="writes audit/mixture.yaml, the key `data` of pretrain")
    counterfactual: CounterfactualConfig | None = Field(
        default=None, description="writes audit/pairs.jsonl, the key `data` of align"
    )


def _suites(value: Any, folder: str | None) -> list[dict[str, str]]:
    entries = [value] if isinstance(value, (str, dict)) else list(value or [])
    suites: list[dict[str, str]] = []
    for entry in entries:
        if isinstance(entry, dict) and set(entry) == {"name", "path"}:
            suites.append(entry)
            continue
        if not isinstance(entry, str):
            raise ConfigError(f"suites: {entry!r} is neither a name nor a file; built in: {', '.join(BUILT_IN)}")
        name, path = resolve_suite(entry, folder)
        suites.append({"name": name, "path": path})
    names = [suite["name"] for suite in suites]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"suites: {', '.join(twice)} is named twice; write {{name: ..., path: ...}} with another name")
    return suites


def _scorers(value: Any) -> Any:
    return [
        {"name": scorer} if isinstance(scorer, str) else scorer for scorer in ([value] if isinstance(value, str) else value or [])
    ]


class AuditConfig(ModelJobConfig):
    """The keys of an audit."""

    usual_keys = (
        *("model", "suites", "suites_folder", "subgroups", "samples", "prompts", "contamination", "memorization", "calibration"),
        *("require", "before", "seed", *RUN_KEYS),
    )
    hidden_keys = HANGS | WEIGHTS

    model: ModelRef = Field(
        description="a run (id, path or latest): its newest complete checkpoint; RUN@STEP; an alias such as production; a "
        "Hugging Face directory; or a name on the hub (ORG/NAME[@REVISION])"
    )
    suites: tuple[Suite, ...] = Field(
        default=(), description=f"stereotype pairs: files, or {', '.join(BUILT_IN)} from suites_folder"
    )
    suites_folder: DataPath | None = Field(default=None, description=f"folder of the built-in suites; unset: ${FOLDER_VARIABLE}")
    most_items: int | None = Field(default=None, ge=1, description="maximum pairs of each suite, drawn by the seed; unset: all")
    require: dict[str, ConditionText] = Field(
        default={}, description='the gate: conditions on scores, such as {stereotype_rate: "<= 0.6 by 2se"}'
    )
    subgroups: SubgroupsConfig | None = Field(default=None, description="perplexity by group; unset: off")
    samples: SamplesConfig | None = Field(default=None, description="personal data in generated texts; unset: off")
    prompts: PromptsConfig | None = Field(default=None, description="refusals; unset: off")
    scorers: Annotated[tuple[ScorerConfig, ...], BeforeValidator(_scorers)] = Field(
        default=(), description="plug-ins that judge samples and answers, such as for toxicity: names or {name, threshold}"
    )
    identity: IdentityConfig | None = Field(
        default=None, description="false positives of filters and plug-ins by group; unset: off"
    )
    contamination: ContaminationConfig | None = Field(default=None, description="items in the training data; unset: off")
    memorization: MemorizationConfig | None = Field(default=None, description="verbatim training text; unset: off")
    calibration: CalibrationConfig | None = Field(default=None, description="confidence against accuracy; unset: off")
    evaluation: str | None = Field(
        default=None,
        description="a finished evaluate run of the same model, whose items are included in contamination and calibration",
    )
    mitigation: MitigationConfig = Field(default=MitigationConfig(), description="files for the next training run")
    before: str | None = Field(default=None, description="an earlier audit run to compare with")

    @model_validator(mode="before")
    @classmethod
    def _find_suites(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("suites"):
            return values
        try:
            return {**values, "suites": _suites(values["suites"], values.get("suites_folder"))}
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("before", "evaluation")
    @classmethod
    def _earlier(cls, value: str | None) -> str | None:
        return str(Path(value).absolute()) if value and (Path(value) / "run.yaml").is_file() else value

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        measures = (self.suites, self.subgroups, self.samples, self.prompts, self.identity, self.contamination, self.evaluation)
        if not any(measures) and not (self.memorization or self.calibration or self.mitigation.counterfactual):
            raise ValueError("nothing to audit; set suites, or another measure (see `ropewalk run audit --help`)")
        if self.mitigation.mixture is not None and self.subgroups is None:
            raise ValueError("mitigation.mixture: is computed from `subgroups`; set that too")
        if self.memorization is not None and self.memorization.data is None and self.memorization.canaries is None:
            raise ValueError("memorization: set data, canaries or both")
        if self.scorers and not (self.samples or self.prompts or self.identity):
            raise ValueError("scorers: judge texts; set samples, prompts or identity too")
        return self

    def own_code(self) -> bool:
        """Return True if a scorer or filter is the user's own."""
        return any(":" in s.name for s in self.scorers) or bool(self.identity and need_own_code(self.identity.filters))

    def preflight(self, here: PathView = Path) -> None:
        """Raise ConfigError unless the model, the suites, and the local files and data sets exist."""
        model = here(self.model) if self.model.startswith("/") else Path(self.model)
        if model is not None:
            find_model(str(model))
        for key, path in self._files():
            local = here(path) if path.startswith("/") else None
            if local is not None and not local.is_file():
                raise ConfigError(f"{key}: {path}: no such file{other_names(path)}; check the path")
        for part in (self.contamination, self.memorization):
            if part is not None and part.data is not None:
                check_data(part.data, here)
        for key, ref, job_name in (("before", self.before, "audit"), ("evaluation", self.evaluation, "evaluate")):
            if ref is not None and (job := find_run(ref).record.get("job")) != job_name:
                raise ConfigError(f"{key}: {ref} is a run of {job}; name a run of {job_name}")

    def _files(self) -> list[tuple[str, str]]:
        parts = {"subgroups": self.subgroups, "prompts": self.prompts, "calibration": self.calibration}
        files = [("suites", suite.path) for suite in self.suites]
        files += [(f"{key}.path", part.path) for key, part in parts.items() if part is not None]
        if self.memorization is not None and self.memorization.canaries is not None:
            files.append(("memorization.canaries", self.memorization.canaries))
        if self.contamination is not None:
            files += [("contamination.against", path) for path in self.contamination.against]
        if self.identity is not None and self.identity.terms is not None:
            files.append(("identity.terms", self.identity.terms))
        chosen = self.mitigation.counterfactual
        if chosen is not None and chosen.templates is not None:
            files.append(("mitigation.counterfactual.templates", chosen.templates))
        return files
