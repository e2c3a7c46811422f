"""projektor: predict what a mixture will score from small trainings and optimal transport, and choose it.

Kang et al., arXiv 2307.02460 ("Performance Scaling via Optimal Transport"): a few documents of each source are
enough to measure how far any mixture of the sources is from a validation set; a few small trainings teach how
that distance and the shares make the score; the mixture with the best predicted score is chosen. What is
different from the paper, and how it was measured, is in docs/selectors/projektor.md.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field

from mixwright.errors import ConfigError
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.mixtures import Budget
from mixwright.schemas.reads import EncoderName
from mixwright.schemas.references import ReferenceText
from mixwright.schemas.training_runs import Direction, Metric, TrainingRun, Unit
from mixwright.selectors.allocation import water_fill
from mixwright.selectors.baselines import MaxEpochs, Seed
from mixwright.selectors.mixture import Mixture, mix
from mixwright.selectors.pool import Pool, Requirements
from mixwright.selectors.projektor.costs import LabelCost
from mixwright.selectors.projektor.predictors import PredictorName
from mixwright.selectors.projektor.projection import ProjectionName
from mixwright.selectors.projektor.report import projektor_report, projektor_tables
from mixwright.selectors.projektor.study import Study

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Projektor:
    """Predicts what a mixture will score, from small trainings and optimal transport, and chooses the best.

    Without results it chooses the mixture that is nearest to the validation set.
    """

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}
    kind: Literal["projektor"] = "projektor"
    validation: Annotated[str, Field(description="corpus of what the model will be judged on")] = ""
    results: Annotated[
        ReferenceText | tuple[TrainingRun, ...],
        Field(description="small trainings: published results, or a table (CSV, JSON) of weights, size and score"),
    ] = ()
    metric: Annotated[str | None, Field(min_length=1, description="name of the score; default: the results'")] = (
        None
    )
    direction: Annotated[
        Direction | None, Field(description="which way a score is better; default: the results', else minimize")
    ] = None
    low: Annotated[float | None, Field(description="lowest possible score; default: the results'")] = None
    high: Annotated[float | None, Field(description="highest possible score; default: the results'")] = None
    unit: Annotated[
        Unit, Field(description="of the sizes in a table of results; published results have their own")
    ] = "tokens"
    size: Annotated[
        int | None, Field(ge=1, description="training size that scores are predicted for; default: the budget")
    ] = None
    declared_sizes: Annotated[
        dict[str, Annotated[int, Field(ge=1)]],
        Field(description="NAME=SIZE of sources whose corpus is only a sample, in the unit of the results"),
    ] = dataclasses.field(default_factory=dict)
    label: Annotated[
        str | None, Field(min_length=1, description="metadata key or column with the class of a document")
    ] = None
    label_cost: Annotated[
        LabelCost | None, Field(description="what another label costs; default: zero_one with label, else none")
    ] = None
    predictor: Annotated[
        PredictorName | Literal["auto"],
        Field(description="of the score at one size; auto averages by their errors"),
    ] = "auto"
    projection: Annotated[ProjectionName, Field(description="from the sizes of the runs to others")] = (
        "power_pooled"
    )
    pilot_rows: Annotated[int, Field(ge=1, description="documents that stand for a source")] = 1000
    validation_rows: Annotated[int, Field(ge=1, description="documents that stand for the validation corpus")] = (
        1000
    )
    centroids: Annotated[
        int, Field(ge=0, description="points that a source is compressed to; 0: all its pilot documents")
    ] = 256
    encoder: Annotated[EncoderName, Field(description="name, hub id or local folder of the encoder")] = (
        DEFAULT_ENCODER
    )
    template: Annotated[str, Field(min_length=1, description="what of a document is embedded")] = "{text}"
    max_epochs: MaxEpochs = 4.0
    seed: Seed = 0

    def requirements(self) -> Requirements:
        """What is read besides the corpora: vectors of samples, the validation corpus, results."""
        return Requirements(
            encoder=self.encoder,
            prompt="",
            response=self.template,
            examples=self.validation or None,
            sample=max(self.pilot_rows, self.validation_rows),
            results=self.results if isinstance(self.results, str) else None,
        )

    def metric_or(self, recorded: Metric) -> Metric:
        """The metric: what is given here, and of the rest what the results say.

        Raises ConfigError for bounds that leave no room.
        """
        found = Metric(
            name=self.metric or recorded.name,
            direction=self.direction or recorded.direction,
            low=recorded.low if self.low is None else self.low,
            high=recorded.high if self.high is None else self.high,
        )
        if found.low is not None and found.high is not None and found.low >= found.high:
            raise ConfigError(f"the metric's low {found.low:g} is not below its high {found.high:g}: correct them")
        return found

    def select(self, pool: Pool, budget: Budget) -> Mixture:
        """Raises DataError without a validation set or vectors, ShortfallError for a budget that is too large."""
        study = Study.of(self, pool, budget)
        served = self._served(study, pool, budget)
        mixture = mix(pool, budget, served, selector=self.kind, max_epochs=self.max_epochs, seed=self.seed)
        return replace(
            mixture,
            tables=projektor_tables(study),
            report=projektor_report(self, study),
            warnings=(*mixture.warnings, *study.warnings),
        )

    def _served(self, study: Study, pool: Pool, budget: Budget) -> FloatArray:
        """The weights (k,) to serve: the chosen ones, as far as the documents that are there allow.

        Without sources whose share is less than one document. What the chosen sources cannot give (caps are shares
        of tokens, and a budget of documents has others) comes from the rest.
        """
        tokens = np.asarray([int(source.n_tokens.sum()) for source in pool.sources], dtype=np.float64)
        documents = np.asarray([len(source.ids) for source in pool.sources], dtype=np.float64)
        lengths, total = tokens / documents, budget.tokens or budget.documents or 0
        per_weight, there = (np.ones(len(tokens)), tokens) if budget.tokens else (1 / lengths, documents)
        wanted = study.chosen * per_weight
        enough = wanted / wanted.sum() * total >= (lengths if budget.tokens else 1.0)
        if enough.any():
            wanted = np.where(enough, wanted, 0.0)
        capacities = there * self.max_epochs
        amounts = water_fill(wanted, capacities, total)
        left = total - float(amounts.sum())
        if left > 1e-6 * total:
            amounts = amounts + water_fill(np.where(wanted > 0, 0.0, capacities), capacities, left)
        weights = amounts / per_weight
        return np.asarray(weights / weights.sum())
