"""The score job: a corpus and two language models to attributes that say how far apart the models are.

Each document is a prompt with a response. One forward pass of the original and one of the pruned model give, at
each of the response's tokens, two distributions of what comes next. Both models are in memory together, or one
after the other, with the original's likeliest tokens kept on disk between them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mixwright.corpora import Corpus, check_template
from mixwright.errors import DataError
from mixwright.fingerprint import fingerprint
from mixwright.jobs.marked_shards import ShardFolder, Workers, finish_shards, shards_of
from mixwright.jobs.ray_pool import cpu_count, ray_session
from mixwright.jobs.score_workers import (
    OriginalMark,
    OriginalWorker,
    PrunedWorker,
    ScoreMark,
    ScorePlan,
    ScoreWorker,
)
from mixwright.language_models.gguf import unpack_gguf
from mixwright.language_models.loading import LanguageModelSource, find_language_model, weight_bytes
from mixwright.language_models.matching import check_same_tokenizer, shared_limits
from mixwright.language_models.prompts import STATUSES, Status, choose_format
from mixwright.progress import Progress
from mixwright.schemas.manifests import ArtifactInput, AttributeColumn, AttributesManifest
from mixwright.schemas.references import parse_reference
from mixwright.schemas.requests import ScoreRequest
from mixwright.store import Store, software_versions
from mixwright.templates import instruction_templates

_LONGEST_NAME = 128
_LIBRARIES = ("torch", "transformers", "tokenizers", "gguf", "numpy", "ray")
_PROCESS_BYTES = 1 << 30
"""What a worker takes beside the models' weights: libraries, activations, a block of logits."""


def run_score(store: Store, request: ScoreRequest, progress: Progress) -> AttributesManifest:
    """Score a corpus and publish the columns; equal attributes that are published already are returned.

    Raises NotFoundError for a missing corpus or model, ConfigError for a device, field or chat template that is
    not there, DataError for models of two tokenizers, for one that does not load or whose output is not finite,
    and if no document can be scored, ConflictError if another process is scoring the same, JobError for a shard
    whose workers keep dying, MissingExtraError for a GGUF file without the libraries that read it.
    """
    corpus = Corpus.open(store, request.corpus)
    if len(corpus) == 0:
        raise DataError(f"corpus {corpus.manifest.ref} has no documents: ingest some")
    prompt, response = _templates(corpus, request)
    original, pruned = find_language_model(request.original), find_language_model(request.pruned)
    reference = parse_reference(request.name or f"{corpus.manifest.name}.scores"[:_LONGEST_NAME])
    # What only transformers could tell stands here as it was asked for: a second run of a job needs no model.
    parameters = {
        "job": "score",
        "original_revision": original.revision,
        "pruned_revision": pruned.revision,
        "prompt": prompt,
        "response": response,
        **request.model_dump(include={"prompt_format", "max_tokens", "dtype", "cache_top_k"}),
    }
    identity = fingerprint("attributes", [corpus.manifest.fingerprint], parameters)
    existing = store.existing("attributes", reference, identity)
    if isinstance(existing, AttributesManifest):
        return existing
    plan = _plan(corpus, original, pruned, request, prompt, response, store.home / "cache", progress)
    with store.stage("attributes", reference, identity, resume=True) as staging:
        folder = ShardFolder(staging.path.resolve(), "parquet", ScoreMark)
        marks = _score_shards(corpus, plan, folder, progress)
        draft = _manifest(reference.name, corpus, plan, parameters, identity, folder, marks)
        for warning in draft.warnings:
            progress.note(f"warning: {warning}")
        return store.publish(staging, draft)


def _templates(corpus: Corpus, request: ScoreRequest) -> tuple[str, str]:
    """Templates of prompt and response: as asked for, else by the names of the corpus's fields."""
    prompt, response = instruction_templates(corpus.metadata_fields)
    prompt = prompt if request.prompt is None else request.prompt
    response = response if request.response is None else request.response
    for template in (prompt, response):
        if template:
            check_template(corpus, template)
    return prompt, response


def _plan(
    corpus: Corpus,
    original: LanguageModelSource,
    pruned: LanguageModelSource,
    request: ScoreRequest,
    prompt: str,
    response: str,
    cache: Path,
    progress: Progress,
) -> ScorePlan:
    """What the workers are told, once the models are known to go together."""
    original, pruned = (unpack_gguf(each, cache, progress) for each in (original, pruned))
    tokenizer = check_same_tokenizer(original, pruned)
    return ScorePlan(
        corpus=corpus.shards[0].parent.resolve(),
        original=original,
        pruned=pruned,
        limits=shared_limits(original, pruned, tokenizer),
        prompt=prompt,
        response=response,
        prompt_format=choose_format(tokenizer, request.prompt_format, has_prompts=bool(prompt)),
        request=request,
    )


def _score_shards(
    corpus: Corpus, plan: ScorePlan, folder: ShardFolder[ScoreMark], progress: Progress
) -> dict[str, ScoreMark]:
    """Score the shards that an earlier run did not finish; returns the marks of all."""
    request, shards, ref = plan.request, shards_of(corpus), corpus.manifest.ref
    sizes = [weight_bytes(each, request.dtype) for each in (plan.original, plan.pruned)]

    def workers(actor: type, folders: tuple[ShardFolder[Any], ...], weights: int) -> Workers:
        memory = weights + _PROCESS_BYTES
        return Workers(actor, (plan, *folders), request.device, request.workers, memory)

    if request.cache_top_k is None:
        return finish_shards(folder, shards, workers(ScoreWorker, (folder,), sum(sizes)), f"score {ref}", progress)
    kept = ShardFolder(folder.root / "original", "bin", OriginalMark)
    done = folder.finished(shards)
    missing = {shard: n for shard, n in shards.items() if shard not in done}
    with ray_session(max(cpu_count(), request.workers or 1)):
        finish_shards(kept, missing, workers(OriginalWorker, (kept,), sizes[0]), f"original on {ref}", progress)
        marks = finish_shards(
            folder, shards, workers(PrunedWorker, (folder, kept), sizes[1]), f"pruned on {ref}", progress
        )
    shutil.rmtree(kept.root)
    return marks


def _manifest(
    name: str,
    corpus: Corpus,
    plan: ScorePlan,
    parameters: dict[str, Any],
    identity: str,
    folder: ShardFolder[ScoreMark],
    marks: dict[str, ScoreMark],
) -> AttributesManifest:
    """The manifest; raises DataError if no document was scored."""
    counts = {each: sum(mark.counts[each] for mark in marks.values()) for each in STATUSES}
    warnings = _warnings(len(corpus), plan, counts)
    if not counts["scored"]:
        raise DataError(
            f"no document of {corpus.manifest.ref} can be scored: {'; '.join(warnings)}; name their fields with "
            "--prompt and --response, or raise --max-tokens"
        )
    dtypes = sorted({mark.compute_dtype for mark in marks.values()})
    return AttributesManifest(
        name=name,
        version=1,
        fingerprint=identity,
        inputs=[ArtifactInput(kind="corpus", ref=corpus.manifest.ref, fingerprint=corpus.manifest.fingerprint)],
        parameters=parameters,
        files=folder.entries(marks),
        created_at=datetime.now(UTC),
        software=software_versions(*_LIBRARIES),
        warnings=warnings,
        corpus=corpus.manifest.ref,
        n_rows=len(corpus),
        columns=_columns(plan, " and ".join(dtypes)),
        counts=counts,
    )


def _warnings(n_documents: int, plan: ScorePlan, counts: Mapping[Status, int]) -> list[str]:
    of = f"of {n_documents} documents have"
    told: dict[Status, str] = {
        "empty_response": f"{counts['empty_response']} {of} no response ({plan.response!r}): they have no scores",
        "too_long": f"{counts['too_long']} {of} more than {plan.max_tokens} tokens: they have no scores",
    }
    return [line for status, line in told.items() if counts[status]]


def _columns(plan: ScorePlan, dtype: str) -> list[AttributeColumn]:
    between = f"between {plan.original.name} and {plan.pruned.name}"
    kept = plan.request.cache_top_k
    bound = f"; a lower bound, by the original's {kept} likeliest tokens and the rest as one" if kept else ""
    how = f"prompt format {plan.prompt_format}, computed in {dtype}"
    mean = "mean over the response's tokens of"
    nll = f"{mean} −log probability, in nats, by"
    about = {
        "jsd": ("float", f"{mean} the Jensen-Shannon divergence {between}, in nats ({how}){bound}"),
        "nll_original": ("float", f"{nll} {plan.original.name}"),
        "nll_pruned": ("float", f"{nll} {plan.pruned.name}"),
        "n_prompt_tokens": ("int32", "tokens before the response, with those of the prompt format"),
        "n_response_tokens": ("int32", "tokens of the response"),
        "score_status": ("string", " or ".join(STATUSES)),
    }
    return [AttributeColumn(name=name, dtype=kind, description=text) for name, (kind, text) in about.items()]
