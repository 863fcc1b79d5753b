"""Noise on the embeddings of the input in training (NEFTune, Jain and others, arXiv 2310.05914)."""

from typing import Any

import torch
from torch import nn


def add_noise(model: Any, alpha: float) -> None:
    """Add uniform noise in ±alpha/√(T·d) to the embeddings, [B, T, d], wherever the model is in training mode."""

    def noisy(module: nn.Module, inputs: Any, output_BTD: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output_BTD
        size = alpha / (output_BTD.shape[1] * output_BTD.shape[2]) ** 0.5
        return output_BTD + torch.empty_like(output_BTD).uniform_(-size, size)

    model.get_input_embeddings().register_forward_hook(noisy)
