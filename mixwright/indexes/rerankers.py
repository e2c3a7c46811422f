"""Cross-encoders: a model that reads query and passage together and says how well they go together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mixwright.errors import DataError, first_line
from mixwright.torch_runtime import no_loading_bars, torch_device

_BATCH = {"cpu": 16, "cuda": 128}


class Reranker:
    """A cross-encoder in memory; one thread at a time uses it."""

    def __init__(self, name: str, model: Any, device: str) -> None:
        self.name = name
        self._model = model
        self._device = device
        self._lock = threading.Lock()

    def scores(self, query: str, passages: Sequence[str]) -> npt.NDArray[np.float32]:
        """How well each of the passages (m,) answers the query; higher is better.

        What the model cannot read of a long pair it leaves out, as all cross-encoders do.
        """
        if not passages:
            return np.zeros(0, dtype=np.float32)
        with self._lock:
            found = self._model.predict(
                [(query, passage) for passage in passages],
                batch_size=_BATCH[self._device],
                show_progress_bar=False,
                convert_to_numpy=True,
            )
        scores = np.asarray(found, dtype=np.float32)
        if scores.shape != (len(passages),):
            raise DataError(
                f"reranker {self.name} gives {scores.shape[1:]} numbers a pair: name one that gives one"
            )
        return scores


def load_reranker(name: str, device: str = "auto") -> Reranker:
    """Load a cross-encoder of sentence-transformers: a local folder, or a model of the hub.

    Raises DataError for what it cannot load, ConfigError for a device that is not there.
    """
    from sentence_transformers import CrossEncoder

    target = torch_device(device)
    try:
        with no_loading_bars():
            model = CrossEncoder(name, device=target)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"reranker {name}: sentence-transformers cannot load it ({first_line(error)}): name the folder of a "
            "cross-encoder, or a model of the hub"
        ) from error
    return Reranker(name, model, target)
