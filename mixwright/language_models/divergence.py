"""How far two next-token distributions are apart: pure functions over logits, in float32 log space.

The Jensen-Shannon divergence of P and Q in nats, with M = (P + Q) / 2:

    JSD = ½ Σ P (log P − log M) + ½ Σ Q (log Q − log M),   0 ≤ JSD ≤ ln 2

Written out with probabilities it is NaN as soon as one of them underflows, which half precision does at once.
With d = −|log P − log Q| each token's share depends on the larger probability and on d alone,

    ½ max(P, Q) h(d),   h(d) = −(1 + eᵈ) log((1 + eᵈ) / 2) + d eᵈ,   h(0) = 0, h(−∞) = ln 2

and every factor of it is finite and not negative, whatever the logits are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LN2 = math.log(2)

_FLOOR = -1e4
"""Stands for log 0: its exponential is 0 in float32, and differences of it are finite."""

_FURTHEST = -100.0
"""h is ln 2 to the last bit from here on."""

VOCABULARY_CHUNK = 8192
"""Tokens of the vocabulary at a time: what the intermediate values of a block of positions take stays small."""


class TokenScores(NamedTuple):
    """Of n response tokens, each (n,) float32: the divergence, and −log P of the token itself by either model."""

    jsd: Tensor
    nll_original: Tensor
    nll_pruned: Tensor


class TopTokens(NamedTuple):
    """A model's k likeliest next tokens at n positions, and the rest as one number.

    ``ids`` (n, k) int32 and ``log_probabilities`` (n, k) float32, likeliest first; ``log_tail`` (n,) float32 is
    the log of the probability of all other tokens together (−inf where k is the whole vocabulary); ``nll`` (n,)
    float32 is −log P of the token that does follow.
    """

    ids: Tensor
    log_probabilities: Tensor
    log_tail: Tensor
    nll: Tensor


def divergence_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Each outcome's share of the Jensen-Shannon divergence, elementwise, in nats, not negative.

    ``log_p`` and ``log_q`` are float32 log-probabilities of one shape, −inf allowed. NaN stays NaN.
    """
    import torch

    log_p, log_q = log_p.clamp(min=_FLOOR), log_q.clamp(min=_FLOOR)
    larger = torch.maximum(log_p, log_q)
    d = (log_p - log_q).abs_().neg_().clamp_(min=_FURTHEST)
    e = torch.expm1(d)
    return larger.exp_().mul_(d.mul_(1 + e).sub_((2 + e).mul_(torch.log1p(e / 2)))).mul_(0.5)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence over the last dimension of two (…, v) float32 log-probabilities; in [0, ln 2]."""
    return divergence_terms(log_p, log_q).sum(-1).clamp(0, LN2)


def log_normalizer(logits: Tensor, chunk: int = VOCABULARY_CHUNK) -> Tensor:
    """log Σ exp over the last dimension of (n, v) logits of any float type, in float32, (n,).

    It is finite exactly if no logit is NaN or +inf and not all of them are −inf.
    """
    import torch

    parts = [part.float().logsumexp(-1) for part in torch.split(logits, chunk, dim=-1)]
    return torch.stack(parts, dim=-1).logsumexp(-1)


def compare(original: Tensor, pruned: Tensor, targets: Tensor, chunk: int = VOCABULARY_CHUNK) -> TokenScores:
    """Compare two models' logits at n positions.

    ``original`` and ``pruned`` are (n, v) logits of any float type, −inf allowed; ``targets`` (n,) are the
    tokens that follow. Where a model's logits are not finite otherwise, its nll is not finite.
    """
    import torch

    z_p, z_q = log_normalizer(original, chunk), log_normalizer(pruned, chunk)
    total = torch.zeros_like(z_p)
    for part_p, part_q in zip(*(torch.split(each, chunk, dim=-1) for each in (original, pruned)), strict=True):
        terms = divergence_terms(part_p.float().sub(z_p[:, None]), part_q.float().sub(z_q[:, None]))
        total += terms.sum(-1)
    return TokenScores(total.clamp_(0, LN2), _nll(original, z_p, targets), _nll(pruned, z_q, targets))


def top_tokens(logits: Tensor, targets: Tensor, k: int, chunk: int = VOCABULARY_CHUNK) -> TopTokens:
    """The k likeliest tokens (all of them where the vocabulary is smaller) of (n, v) logits."""
    z = log_normalizer(logits, chunk)
    values, ids = logits.topk(min(k, logits.shape[-1]), dim=-1)
    tail = logits.scatter(-1, ids, -math.inf)
    return TopTokens(
        ids.int(), values.float().sub(z[:, None]), log_normalizer(tail, chunk).sub(z), _nll(logits, z, targets)
    )


def compare_with_top(
    original: TopTokens, pruned: Tensor, targets: Tensor, chunk: int = VOCABULARY_CHUNK
) -> TokenScores:
    """Compare (n, v) logits with what is kept of the original's distribution.

    The tokens outside of the original's k likeliest count as one outcome. Merging outcomes never raises a
    Jensen-Shannon divergence (data processing inequality): this is a lower bound of ``compare``, and equal to it
    where k is the whole vocabulary.
    """
    import torch

    z = log_normalizer(pruned, chunk)
    ids = original.ids.long()
    kept = pruned.gather(-1, ids).float().sub(z[:, None])
    tail = log_normalizer(pruned.scatter(-1, ids, -math.inf), chunk).sub(z)
    log_p = torch.cat([original.log_probabilities, original.log_tail[:, None]], dim=-1)
    log_q = torch.cat([kept, tail[:, None]], dim=-1)
    return TokenScores(divergence(log_p, log_q), original.nll, _nll(pruned, z, targets))


def _nll(logits: Tensor, normalizer: Tensor, targets: Tensor) -> Tensor:
    return normalizer - logits.gather(-1, targets[:, None]).squeeze(-1).float()
