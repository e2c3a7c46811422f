"""Recovery training of a pruned LM, and its loss on held-out responses."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mixwright.errors import ConfigError
from mixwright.language_models.responses import response_batch
from recovery.data import Sample
from recovery.pruning import prunable_layers

Method = Literal["full", "lora"]
_WARMUP = 0.1
_LORA_RANK, _LORA_ALPHA = 8, 16


@dataclass(frozen=True)
class Recovery:
    """How a pruned model is trained; ``batch_tokens`` are padded tokens a forward pass."""

    method: Method
    steps: int
    epochs: int
    batch_tokens: int
    device: str


def recover(model: Any, samples: Sequence[Sample], recovery: Recovery, lr: float, seed: int) -> Any:
    """Train ``model`` in place on the samples' responses; what was pruned stays zero.

    A step's loss is the mean over its response tokens. The learning rate rises over the first tenth of the steps
    and falls to zero by a cosine. Master weights are float32 whatever the model computes in.
    """
    torch.manual_seed(seed)
    model, weights = _trainable(model, recovery.method)
    masks = [weight != 0 for weight in weights] if recovery.method == "full" else [None] * len(weights)
    masters = [weight.detach().float().clone() for weight in weights]
    optimizer = torch.optim.AdamW(masters, lr=lr, weight_decay=0.0)
    model.train()
    for number, step in enumerate(deal(samples, recovery.steps, recovery.epochs, seed)):
        n_targets = sum(sample.n_response for sample in step)
        for batch in batches(step, recovery.batch_tokens):
            (_losses(model, batch, recovery.device).sum() / n_targets).backward()
        _update(weights, masters, masks, optimizer, lr * rate(number, recovery.steps))
    return model


@torch.no_grad()
def _update(
    weights: Sequence[Tensor],
    masters: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    optimizer: torch.optim.Optimizer,
    lr: float,
) -> None:
    """One step of the optimizer on the masters, copied to the weights it trains; pruned ones get no gradient."""
    for weight, master, mask in zip(weights, masters, masks, strict=True):
        if weight.grad is not None:
            master.grad = weight.grad.float() if mask is None else weight.grad.float().mul_(mask)
            weight.grad = None
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    for weight, master in zip(weights, masters, strict=True):
        weight.copy_(master)


def deal(samples: Sequence[Sample], steps: int, epochs: int, seed: int) -> Iterator[list[Sample]]:
    """The samples of each of ``steps`` steps, shuffled every epoch, about equally many tokens a step.

    The number of steps is given, so that arms of short and of long samples take equally many. Raises ConfigError
    for fewer samples than steps.
    """
    draw = random.Random(seed)
    order = [sample for _ in range(epochs) for sample in draw.sample(list(samples), len(samples))]
    if len(order) < steps:
        raise ConfigError(f"{len(order)} samples cannot fill {steps} steps: raise --budget or lower --steps")
    ends = np.cumsum([sample.n_tokens for sample in order])
    # Each step ends where its share of the tokens is reached, and has one sample at least.
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, steps) / steps) + 1
    cuts = np.maximum.accumulate(cuts - np.arange(1, steps)) + np.arange(1, steps)
    cuts = np.minimum(cuts, len(order) - steps + np.arange(1, steps))
    for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True):
        yield order[start:stop]


def batches(samples: Sequence[Sample], batch_tokens: int) -> Iterator[list[Sample]]:
    """Samples of like length together, at most ``batch_tokens`` tokens with padding (or one sample)."""
    batch: list[Sample] = []
    for sample in sorted(samples, key=lambda each: (each.n_tokens, each.id)):
        if batch and (len(batch) + 1) * sample.n_tokens > batch_tokens:
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


@torch.no_grad()
def response_nll(model: Any, samples: Sequence[Sample], batch_tokens: int, device: str) -> dict[str, list[float]]:
    """By sample id: the response's negative log-likelihood (nats, summed) and its number of tokens."""
    model.eval()
    found = {}
    for batch in batches(samples, batch_tokens):
        losses = _losses(model, batch, device).double().cpu()
        for sample, part in zip(batch, losses.split([each.n_response for each in batch]), strict=True):
            found[sample.id] = [float(part.sum()), len(part)]
    return found


def rate(step: int, steps: int) -> float:
    """The learning rate of a step as a share of the highest."""
    warmup = max(1, int(_WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _losses(model: Any, batch: Sequence[Sample], device: str) -> Tensor:
    """Loss of every response token, sample after sample; logits are made for these tokens only."""
    padded = response_batch([sample.ids for sample in batch], [sample.n_prompt for sample in batch], device)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=padded.ids, attention_mask=padded.mask, use_cache=False).last_hidden_state
    logits = base.lm_head(hidden.flatten(0, 1)[padded.positions])
    return cross_entropy(logits.float(), padded.targets, reduction="none")


def _trainable(model: Any, method: Method) -> tuple[Any, list[Tensor]]:
    """The model, with adapters under ``lora``, and what of it is trained."""
    if method == "lora":
        try:
            from peft import LoraConfig, get_peft_model
        except ImportError as error:
            raise ConfigError("--recover lora needs peft: run  pip install --no-deps peft") from error
        config = LoraConfig(
            r=_LORA_RANK,
            lora_alpha=_LORA_ALPHA,
            target_modules=list(prunable_layers(model)),
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]
