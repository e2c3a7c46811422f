"""Three corpora of text, a byte n-gram model, and a held-out blend of the three to predict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mixwright.errors import ConfigError, DataError, NotFoundError
from mixwright.language_models.ngram import NgramModel
from mixwright.schemas.training_runs import Metric
from mixwright.selectors.projektor.costs import LabelCost
from mixwright.selectors.projektor.problem import transport_problem
from mixwright.selectors.projektor.transport import Points, TransportProblem
from projektor_study.world import FloatArray, Trained

N_SOURCES = 3
DEMO_SOURCES = ("python-source", "package-docs", "package-descriptions")
BLEND = (0.5, 0.3, 0.2)
"""Shares of the sources in what the model is judged on."""
ORDER = 5

_PASSAGE = 1500
"""Characters of the passages that corpora are cut into: what is drawn and held out."""
_SHORTEST = 200
_MOST_PASSAGES = 1200
_VALIDATION, _TEST = 200, 80
_PILOTS = 250


class Passages:
    """A folder of passages and their vectors, made once of the corpora: ``NAME.json`` and ``NAME.npy``."""

    def __init__(self, folder: Path, sources: Sequence[str]) -> None:
        self.sources = tuple(sources)
        self.texts: list[list[str]] = [json.loads((folder / f"{name}.json").read_text()) for name in sources]
        self.vectors = [np.load(folder / f"{name}.npy") for name in sources]


def write_demo_texts(folder: Path) -> None:
    """Text that every machine has, as JSON lines: see ``mixwright.cli.demo_texts``."""
    from mixwright.cli.demo_texts import DEMO_CORPORA, write_rows

    for corpus in DEMO_CORPORA:
        path = folder / f"{corpus.name}.jsonl"
        if corpus.name in DEMO_SOURCES and not path.exists():
            write_rows(corpus, path)


def find_sources(folder: Path, names: Sequence[str] | None) -> list[Path]:
    """The three files of a folder, by name or because there are no others.

    Raises NotFoundError or ConfigError.
    """
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}: name one with three .jsonl files by --data")
    found = sorted(folder.glob("*.jsonl"))
    if names is not None:
        found = [folder / f"{name.removesuffix('.jsonl')}.jsonl" for name in names]
        if missing := [path for path in found if not path.is_file()]:
            raise NotFoundError(f"there is no file {missing[0]}: name others by --sources")
    if len(set(found)) != N_SOURCES:
        raise ConfigError(
            f"{len(found)} .jsonl files of {folder}: name three by --sources, or a folder that has three by --data"
        )
    return found


def prepare(files: Sequence[Path], encoder: str, folder: Path) -> None:
    """Cut the corpora into passages and embed them, into ``folder``; what is there already stays."""
    from mixwright.indexes.encoders import load_encoder

    folder.mkdir(parents=True, exist_ok=True)
    loaded: Any = None
    for path in files:
        texts, vectors = folder / f"{path.stem}.json", folder / f"{path.stem}.npy"
        if texts.exists():
            continue
        passages = read_passages(path)
        loaded = loaded or load_encoder(encoder)
        np.save(vectors, loaded.encode(passages))
        texts.write_text(json.dumps(passages))


def read_passages(path: Path) -> list[str]:
    """The passages of a corpus, each once, at most 1,200 of them, spread over the file.

    Raises DataError for a line without text, and for fewer passages than are held out.
    """
    found: dict[str, None] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise DataError(f"{path}:{number}: no text: give JSON lines with a field text")
            pieces = (text[start : start + _PASSAGE] for start in range(0, len(text), _PASSAGE))
            found.update((piece, None) for piece in pieces if len(piece) >= _SHORTEST)
    passages = list(found)
    fewest = _VALIDATION + _TEST
    if len(passages) < fewest:
        raise DataError(f"{path} has {len(passages)} passages of text: give {fewest} or more")
    kept = np.unique(np.linspace(0, len(passages) - 1, _MOST_PASSAGES).astype(np.int64))
    return [passages[each] for each in kept]


class Text:
    """The passages of a folder, split by ``seed`` into validation, test and what is trained on."""

    metric = Metric("bits a byte", "minimize", 0.0, None)
    label_costs: tuple[LabelCost, ...] = ("none",)

    def __init__(self, folder: Path, sources: tuple[str, ...], seed: int) -> None:
        passages = Passages(folder, sources)
        self.sources = sources
        self._validation: list[str] = []
        self._test: list[str] = []
        self._pool: list[list[str]] = []
        self._pilots, target = [], []
        rng = np.random.default_rng(seed)
        for texts, vectors, share in zip(passages.texts, passages.vectors, BLEND, strict=True):
            order = rng.permutation(len(texts))
            validation, test, pool = np.split(order, np.cumsum([round(share * n) for n in (_VALIDATION, _TEST)]))
            self._validation += [texts[row] for row in validation]
            self._test += [texts[row] for row in test]
            self._pool.append([texts[row] for row in pool])
            target.append(vectors[validation])
            self._pilots.append(Points.of(vectors[pool[:_PILOTS]]))
        self._target = Points.of(np.concatenate(target))

    @cached_property
    def available(self) -> FloatArray:
        return np.asarray([sum(map(len, texts)) for texts in self._pool], dtype=np.float64)

    def transport(self, label_cost: LabelCost) -> TransportProblem:
        return transport_problem(self._pilots, self._target, label_cost=label_cost)

    def train(self, weights: FloatArray, size: int, rng: np.random.Generator) -> Trained:
        """An n-gram model of ``size`` characters: passages in random order, and once more if they run out."""
        texts: list[str] = []
        for pool, share in zip(self._pool, weights, strict=True):
            order, missing, at = rng.permutation(len(pool)), round(share * size), 0
            while missing > 0:
                texts.append(pool[order[at % len(order)]][:missing])
                missing -= len(texts[-1])
                at += 1
        model = NgramModel.train(texts, ORDER)
        return Trained(model.bits_per_byte(self._test), lambda: model.probabilities(self._validation))
