"""datatrove's filters and its four MinHash stages over a .jsonl file, in an environment that has it; prints one JSON object.

    PYTHON peer_datatrove.py rules FILE [--words white|spacy]      decisions and CPU seconds of each filter
    PYTHON peer_datatrove.py minhash FILE FOLDER [--words ...]      CPU seconds, ids that stay

Words are cut at white space, and sentences behind their marks, as this program's rules do, or by datatrove's default (spacy).
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

STANDARD = {"fineweb": {"char_duplicates_ratio": 0.1}}


def use_white_space() -> None:
    from datatrove.pipeline.dedup import minhash
    from datatrove.utils import word_tokenizers

    class WhiteSpace(word_tokenizers.WordTokenizer):
        def word_tokenize(self, text):
            return text.split()

        def sent_tokenize(self, text):
            parts = re.sub(r"([.?!][\"')\]]*)(?=\s)", "\\1\n", text).split("\n")
            return [part for part in parts if part.strip(" .?!\"')]")]

        def span_tokenize(self, text):
            return [(0, len(part)) for part in self.sent_tokenize(text)]

    for module in (word_tokenizers, minhash):
        module.load_word_tokenizer = lambda language: WhiteSpace()


def documents(path):
    from datatrove.data import Document

    with open(path) as lines:
        return [Document(text=record["text"], id=record["id"]) for record in map(json.loads, lines)]


def rules(path, words):
    if words == "white":
        use_white_space()
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.text import split_into_words

    kinds = {
        "gopher_quality": GopherQualityFilter,
        "gopher_repetition": GopherRepetitionFilter,
        "c4": C4QualityFilter,
        "fineweb": FineWebQualityFilter,
    }
    found, seconds = {}, {}
    split_into_words("warm up")
    for name, kind in kinds.items():
        one, verdicts = kind(**STANDARD.get(name, {})), {}
        loaded = documents(path)
        began = time.process_time()
        for document in loaded:
            verdict = one.filter(document)
            verdicts[document.id] = None if verdict is True else verdict[1]
        seconds[name], found[name] = time.process_time() - began, verdicts
    return {"cpu_seconds": seconds, "decisions": found}


def minhash(path, folder, words):
    if words == "white":
        use_white_space()
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config, root = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8), Path(folder)
    source = {"data_folder": str(Path(path).parent), "glob_pattern": Path(path).name, "doc_progress": False}
    stages = [
        ([JsonlReader(**source), MinhashDedupSignature(f"{root}/signatures", config)], 1),
        ([MinhashDedupBuckets(f"{root}/signatures", f"{root}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{root}/buckets", f"{root}/remove", config=config)], 1),
        ([JsonlReader(**source), MinhashDedupFilter(f"{root}/remove"), JsonlWriter(f"{root}/out", compression=None)], 1),
    ]
    began = time.process_time()
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir=f"{root}/logs-{number}").run()
    seconds = time.process_time() - began
    stays = [json.loads(line)["id"] for file in sorted((root / "out").glob("*.jsonl")) for line in file.open()]
    return {"cpu_seconds": seconds, "stays": stays}


def main() -> None:
    parser = argparse.ArgumentParser(description="datatrove's filters or MinHash over a .jsonl file")
    parser.add_argument("what", choices=["rules", "minhash"])
    parser.add_argument("file")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--words", default="white", choices=["white", "spacy"])
    options = parser.parse_args()
    result = (
        rules(options.file, options.words) if options.what == "rules" else minhash(options.file, options.folder, options.words)
    )
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
