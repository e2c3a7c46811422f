"""Studies that are kept open: what was fitted for one prediction serves the next."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from mixwright.fingerprint import fingerprint
from mixwright.jobs.study import open_study
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.predictions import MixturePrediction
from mixwright.schemas.references import Kind
from mixwright.selectors.projektor.report import mixture_prediction, projektor_report
from mixwright.selectors.projektor.selector import Projektor
from mixwright.selectors.projektor.study import Study
from mixwright.store import Store

_OPEN_STUDIES = 16


class OpenStudy:
    """One pool with one selector's parameters, fitted at the first question. One question at a time."""

    def __init__(self, store: Store, sources: Sequence[str], selector: Projektor, budget: Budget | None) -> None:
        self._store = store
        self._sources = sources
        self._selector = selector
        self._budget = budget
        self._lock = threading.Lock()

    def answer(self, mixtures: Sequence[Mapping[str, float]], sizes: Sequence[int]) -> MixturePrediction:
        """Predictions of mixtures (shares by source) at sizes. Raises what ``open_study`` raises, ConfigError."""
        with self._lock:
            weights = [self._study.weights_of(each) for each in mixtures]
            rows = np.asarray(weights, dtype=np.float64).reshape(-1, len(self._study.names))
            return mixture_prediction(self._study, self._report, rows, sizes)

    @cached_property
    def _study(self) -> Study:
        return open_study(self._store, self._sources, self._selector, self._budget, None)

    @cached_property
    def _report(self) -> dict[str, Any]:
        return projektor_report(self._selector, self._study)


class Studies:
    """The studies of a service, the last few kept."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._open: OrderedDict[str, OpenStudy] = OrderedDict()

    def of(self, sources: Sequence[str], selector: Projektor, budget: Budget | None) -> OpenStudy:
        """The study of these corpora by these parameters. Raises NotFoundError for what is not there."""
        named: list[tuple[str, Kind]] = [(source, "corpus") for source in sources]
        if selector.validation:
            named.append((selector.validation, "corpus"))
        if isinstance(selector.results, str):
            named.append((selector.results, "results"))
        # By what the references mean now: a name may get a newer version.
        manifests = [self._store.manifest(reference, kind) for reference, kind in named]
        parameters = {"selector": selector, "budget": budget.as_dict() if budget else None}
        key = fingerprint("study", [f"{each.ref} {each.fingerprint}" for each in manifests], parameters)
        refs = [each.ref for each in manifests[: len(sources)]]
        with self._lock:
            found = self._open.pop(key, None) or OpenStudy(self._store, refs, selector, budget)
            self._open[key] = found
            while len(self._open) > _OPEN_STUDIES:
                self._open.popitem(last=False)
        return found
