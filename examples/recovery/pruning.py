"""Unstructured pruning of a causal LM: by magnitude, or by Wanda's weight times activation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def prunable_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers by name, but for the output head; embeddings are none."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def magnitude_mask(weight: Tensor, sparsity: float) -> Tensor:
    """What stays of a layer, boolean, the shape of ``weight``: all but the floor(sparsity · n) smallest |W|."""
    return _keep(weight.abs().reshape(1, -1), sparsity).view_as(weight)


def wanda_mask(weight: Tensor, input_norm: Tensor, sparsity: float) -> Tensor:
    """What stays of a layer by |W_ij| · ‖X_j‖₂, row by row (Wanda: Sun et al., arXiv 2306.11695, Eq. 1).

    ``weight`` is (out, in), ``input_norm`` (in,) the norm of each input feature over the calibration tokens.
    """
    return _keep(weight.abs().float() * input_norm, sparsity)


def _keep(scores: Tensor, sparsity: float) -> Tensor:
    """Boolean (rows, n): False at the floor(sparsity · n) lowest scores of each row, of equal ones the first."""
    lowest = scores.argsort(dim=1, stable=True)[:, : int(sparsity * scores.shape[1])]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, lowest, False)


@torch.no_grad()
def input_norms(model: Any, texts: Iterable[Tensor]) -> dict[str, Tensor]:
    """‖X_j‖₂ of each prunable layer's input features over all tokens of the ``texts``, each (1, length).

    One pass through the unpruned model calibrates all layers; Wanda's authors prune a layer before they
    calibrate the next.
    """
    squares: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            squares[name] = squares.get(name, 0) + inputs[0].float().flatten(0, -2).square().sum(0)

        return hook

    handles = [layer.register_forward_pre_hook(record(name)) for name, layer in prunable_layers(model).items()]
    try:
        for ids in texts:
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


@torch.no_grad()
def prune(model: Any, sparsity: float, norms: dict[str, Tensor] | None) -> None:
    """Set weights to zero in place: by Wanda where the layers' input norms are given, else by magnitude."""
    for name, layer in prunable_layers(model).items():
        if norms is None:
            mask = magnitude_mask(layer.weight, sparsity)
        else:
            mask = wanda_mask(layer.weight, norms[name], sparsity)
        layer.weight.mul_(mask)
