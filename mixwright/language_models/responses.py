"""Batches of prompts with responses, and how two models' distributions over the response tokens differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from mixwright.language_models.divergence import TokenScores, TopTokens, compare, compare_with_top, top_tokens
from mixwright.language_models.loading import LoadedLanguageModel

if TYPE_CHECKING:
    from torch import Tensor

_Result = TypeVar("_Result", TokenScores, TopTokens)


class ResponseBatch(NamedTuple):
    """b pairs, padded on the right to t tokens, with r response tokens in all.

    ``ids`` and ``mask`` (b, t); ``positions`` (r,) are numbers into the flattened (b·t) positions: of the token
    before each response token, where the model says what comes next; ``targets`` (r,) are the response tokens.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor


def response_batch(pairs: Sequence[Sequence[int]], n_prompt: Sequence[int], device: str) -> ResponseBatch:
    """Pad pairs of which the first ``n_prompt`` (at least one) ids are context, and find their response tokens."""
    import torch

    longest = max(len(ids) for ids in pairs)
    ids = torch.zeros((len(pairs), longest), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    positions, targets = [], []
    for row, (pair, start) in enumerate(zip(pairs, n_prompt, strict=True)):
        ids[row, : len(pair)] = torch.tensor(pair)
        mask[row, : len(pair)] = 1
        positions.append(torch.arange(start - 1, len(pair) - 1) + row * longest)
        targets.append(ids[row, start : len(pair)])
    return ResponseBatch(*(each.to(device) for each in (ids, mask, torch.cat(positions), torch.cat(targets))))


def compare_models(
    original: LoadedLanguageModel, pruned: LoadedLanguageModel, batch: ResponseBatch, vocabulary: int
) -> TokenScores:
    """One forward pass of each model; scores of the batch's r response tokens over the shared vocabulary."""
    import torch

    with torch.inference_mode():
        one, other = original.response_states(batch), pruned.response_states(batch)
        size = min(original.block_positions, pruned.block_positions)
        return _in_blocks(
            TokenScores,
            batch,
            size,
            lambda part: compare(
                original.logits(one[part])[:, :vocabulary],
                pruned.logits(other[part])[:, :vocabulary],
                batch.targets[part],
            ),
        )


def original_top_tokens(original: LoadedLanguageModel, batch: ResponseBatch, vocabulary: int, k: int) -> TopTokens:
    """One forward pass of the original: what is to be kept of its distribution at r response tokens."""
    import torch

    with torch.inference_mode():
        states = original.response_states(batch)
        return _in_blocks(
            TopTokens,
            batch,
            original.block_positions,
            lambda part: top_tokens(original.logits(states[part])[:, :vocabulary], batch.targets[part], k),
        )


def compare_with_top_tokens(
    original: TopTokens, pruned: LoadedLanguageModel, batch: ResponseBatch, vocabulary: int
) -> TokenScores:
    """One forward pass of the pruned model, compared with what was kept of the original's at the same tokens."""
    import torch

    with torch.inference_mode():
        states = pruned.response_states(batch)
        return _in_blocks(
            TokenScores,
            batch,
            pruned.block_positions,
            lambda part: compare_with_top(
                TopTokens(*(each[part].to(pruned.device) for each in original)),
                pruned.logits(states[part])[:, :vocabulary],
                batch.targets[part],
            ),
        )


def response_means(values: Tensor, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Mean over each pair's response tokens, (b,): ``values`` (r,) in order of the pairs, ``lengths`` (b,) ≥ 1."""
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sums = np.add.reduceat(values.double().cpu().numpy(), starts)
    means: npt.NDArray[np.float32] = (sums / lengths).astype(np.float32)
    return means


def _in_blocks(kind: type[_Result], batch: ResponseBatch, size: int, score: Callable[[slice], _Result]) -> _Result:
    """Score blocks of at most ``size`` response tokens, so that not all of their logits exist at once."""
    import torch

    blocks = [score(part) for part in _parts(len(batch.targets), size)]
    return kind(*(torch.cat(parts) for parts in zip(*blocks, strict=True)))


def _parts(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
