"""In which number format a model answers."""

import json
from pathlib import Path

import pytest
import torch

from ropewalk.jobs.inference.scoring.open_model import serving_dtype


@pytest.mark.parametrize(
    ("device", "native", "keys", "expected"),
    [
        ("cuda", True, {"dtype": "float32"}, torch.bfloat16),
        ("cuda", True, {"torch_dtype": "bfloat16"}, torch.bfloat16),
        ("cuda", True, {"torch_dtype": "float16"}, torch.float16),
        ("cuda", False, {"dtype": "float16"}, torch.float16),
        ("cuda", False, {"dtype": "bfloat16"}, torch.float32),  # Volta, Turing
        ("cuda", True, {}, torch.bfloat16),
        ("cpu", True, {"dtype": "bfloat16"}, torch.float32),
    ],
)
def test_a_gpu_answers_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, device: str, native: bool, keys: dict[str, str], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    (tmp_path / "config.json").write_text(json.dumps(keys))
    assert serving_dtype(tmp_path, torch.device(device)) == expected
