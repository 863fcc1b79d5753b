"""datatrove's filters, its four MinHash stages and a whole pipeline over a .jsonl file, in an environment that has it.

Prints one JSON object.

    PYTHON peer_datatrove.py rules FILE [--words white|spacy]      decisions and CPU seconds of each filter
    PYTHON peer_datatrove.py minhash FILE FOLDER [--words ...]      CPU seconds, ids that stay
    PYTHON peer_datatrove.py whole FILE FOLDER --tokenizer FILE     CPU seconds from raw lines to tokens

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


def rules(path, arguments):
    if arguments == "white":
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
    results, seconds = {}, {}
    split_into_words("warm up")
    for name, kind in kinds.items():
        item, verdicts = kind(**STANDARD.get(name, {})), {}
        loaded = documents(path)
        began = time.process_time()
        for document in loaded:
            verdict = item.filter(document)
            verdicts[document.id] = None if verdict is True else verdict[1]
        seconds[name], results[name] = time.process_time() - began, verdicts
    return {"cpu_seconds": seconds, "decisions": results}


def minhash_stages(source, root):
    """Up to the list of what goes; each with its number of tasks."""
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader

    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    return [
        ([JsonlReader(**source), MinhashDedupSignature(f"{root}/signatures", config)], 1),
        ([MinhashDedupBuckets(f"{root}/signatures", f"{root}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{root}/buckets", f"{root}/remove", config=config)], 1),
    ]


def run(stages, root):
    """CPU seconds of all stages, one after another in this process."""
    from datatrove.executor import LocalPipelineExecutor

    began = time.process_time()
    for number, (steps, tasks) in enumerate(stages):
        LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir=f"{root}/logs-{number}").run()
    return time.process_time() - began


def whole(path, folder, arguments, tokenizer):
    """Gopher's and FineWeb's filters, e-mails and addresses, near-duplicates, tokens: what it has without a download."""
    if arguments == "white":
        use_white_space()
    from datatrove.pipeline.dedup import MinhashDedupFilter
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    root = Path(folder)
    raw = {"data_folder": str(Path(path).parent), "glob_pattern": Path(path).name, "doc_progress": False}
    writer = {"data_folder": f"{root}/kept", "glob_pattern": "*.jsonl", "doc_progress": False}
    filters = [GopherQualityFilter(), GopherRepetitionFilter(), FineWebQualityFilter(**STANDARD["fineweb"]), PIIFormatter()]
    tokens = DocumentTokenizer(
        f"{root}/tokens", tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", shuffle_documents=False
    )
    stages = [
        ([JsonlReader(**raw), *filters, JsonlWriter(writer["data_folder"], compression=None)], 1),
        *minhash_stages(writer, root),
        ([JsonlReader(**writer), MinhashDedupFilter(f"{root}/remove"), tokens], 1),
    ]
    seconds = run(stages, root)
    return {"cpu_seconds": seconds, "bytes of tokens": sum(file.stat().st_size for file in root.glob("tokens/*.ds"))}


def unlike(root):
    """The steps that leave out what goes, and write what stays."""
    from datatrove.pipeline.dedup import MinhashDedupFilter
    from datatrove.pipeline.writers import JsonlWriter

    return MinhashDedupFilter(f"{root}/remove"), JsonlWriter(f"{root}/out", compression=None)


def minhash(path, folder, arguments):
    if arguments == "white":
        use_white_space()
    from datatrove.pipeline.readers import JsonlReader

    root = Path(folder)
    source = {"data_folder": str(Path(path).parent), "glob_pattern": Path(path).name, "doc_progress": False}
    seconds = run([*minhash_stages(source, root), ([JsonlReader(**source), *unlike(root)], 1)], root)
    stays = [json.loads(line)["id"] for file in sorted((root / "out").glob("*.jsonl")) for line in file.open()]
    return {"cpu_seconds": seconds, "stays": stays}


def main() -> None:
    parser = argparse.ArgumentParser(description="datatrove's filters, MinHash or a whole pipeline over a .jsonl file")
    parser.add_argument("what", choices=["rules", "minhash", "whole"])
    parser.add_argument("file")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--words", default="white", choices=["white", "spacy"])
    parser.add_argument("--tokenizer", help="a tokenizer.json")
    options = parser.parse_args()
    if options.what == "rules":
        result = rules(options.file, options.words)
    elif options.what == "minhash":
        result = minhash(options.file, options.folder, options.words)
    else:
        result = whole(options.file, options.folder, options.words, options.tokenizer)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
