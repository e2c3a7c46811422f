"""Runs of the study: seeds one after the other or side by side, everything finished kept in a folder."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from mixwright.errors import ConfigError
from mixwright.selectors.projektor.simplex import simplex_grid
from mixwright.store import software_versions
from projektor_study.evaluation import Facts, Plan, describe, evaluate
from projektor_study.plots import write_plots
from projektor_study.report import markdown, tables
from projektor_study.world import Trainings, World

N_SOURCES = 3

MakeWorld = Callable[[int], World]
"""The world of a seed; it is sent to other processes."""


@dataclass(frozen=True)
class Study:
    """Worlds by the name of their problem, with what scores are multiplied by and called in tables."""

    worlds: Mapping[str, MakeWorld]
    scale: float
    unit: str
    title: str
    about: str


def add_options(parser: argparse.ArgumentParser, sizes: Sequence[int], size_unit: str) -> None:
    """Options that both examples have."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the results and all that leads to them"
    )
    parser.add_argument("--seeds", type=int, default=5, help="splits of the data; default: 5")
    parser.add_argument("--draws", type=int, default=3, help="sets of training mixtures of each seed; default: 3")
    parser.add_argument("--workers", type=int, default=1, help="processes; default: 1")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=3,
        default=list(sizes),
        metavar=("N0", "N1", "N"),
        help=f"{size_unit} of the pilots and of what is predicted; default: {' '.join(map(str, sizes))}",
    )
    parser.add_argument("--grid", type=int, default=10, help="steps of the shares of the grid; default: 10")
    parser.add_argument("--runs", type=int, nargs="+", default=[12, 24], help="training mixtures; default: 12 24")
    parser.add_argument(
        "--refit", action="store_true", help="keep the trainings in OUT, but predict and choose again"
    )
    parser.add_argument("--repeats", type=int, default=3, help="trainings that a truth is the mean of; default: 3")


def check(options: argparse.Namespace) -> None:
    """Raises ConfigError for options that make no study."""
    low, high, size = options.sizes
    if not 0 < low < high < size:
        raise ConfigError(f"--sizes {low} {high} {size} do not grow: give N0 < N1 < N")
    mixtures = len(simplex_grid(N_SOURCES, options.grid)) if options.grid > 0 else 0
    if not 4 <= min(options.runs) <= max(options.runs) <= mixtures - 4:
        raise ConfigError(f"--runs of a grid of {mixtures} mixtures: give numbers from 4 to {mixtures - 4}")
    for name in ("seeds", "draws", "workers", "repeats"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: give 1 or more")


def remember(options: argparse.Namespace, **more: Any) -> None:
    """Keep what decides the results in OUT; raises ConfigError if it was something else there."""
    wanted = {"sizes": options.sizes, "grid": options.grid, "repeats": options.repeats, **more}
    path = options.out / "settings.json"
    options.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_json(path, wanted)
    found = json.loads(path.read_text())
    if different := [name for name, value in wanted.items() if found.get(name) != value]:
        raise ConfigError(f"{options.out} holds results of another {different[0]}: name another folder by --out")


def run(study: Study, options: argparse.Namespace, command: str) -> None:
    """Train, predict, and write OUT/results.json, OUT/results.md and the plots."""
    start = time.perf_counter()
    grid = simplex_grid(N_SOURCES, options.grid)
    plan = Plan(tuple(options.sizes), grid, tuple(options.runs), options.repeats)
    if options.refit:
        for path in options.out.glob("*/seed-*.runs-*.json"):
            path.unlink()
    tasks = [(name, seed) for name in study.worlds for seed in range(options.seeds)]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for task, result in _results(study, tasks, plan, options):
        found[task] = result
        say(f"{task[0]} seed {task[1]}: done after {time.perf_counter() - start:.0f} s")
    results: dict[str, Any] = {
        "title": study.title,
        "about": study.about,
        "command": command,
        "seconds": round(time.perf_counter() - start),
        "software": software_versions("numpy", "scipy", "scikit-learn", "POT"),
        "scale": study.scale,
        "unit": study.unit,
        "runs": options.runs,
        "repeats": options.repeats,
        "grid": np.round(grid, 6).tolist(),
        "problems": {
            name: {
                "sources": list(found[name, 0]["sources"]),
                "metric": found[name, 0]["metric"],
                "seeds": [found[name, seed] for seed in range(options.seeds)],
            }
            for name in study.worlds
        },
    }
    results["worker_seconds"] = round(sum(each["seconds"] for each in found.values()))
    results["tables"] = tables(results)
    write_json(options.out / "results.json", results)
    text = markdown(results)
    (options.out / "results.md").write_text(text, encoding="utf-8")
    write_plots(results, options.out)
    say(text)


def _results(
    study: Study, tasks: Sequence[tuple[str, int]], plan: Plan, options: argparse.Namespace
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    jobs = {
        task: partial(run_seed, study.worlds[task[0]], plan, task[1], options.draws, options.out / task[0])
        for task in tasks
    }
    if options.workers == 1:
        yield from ((task, job()) for task, job in jobs.items())
        return
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(job): task for task, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()


def run_seed(make: MakeWorld, plan: Plan, seed: int, draws: int, folder: Path) -> dict[str, Any]:
    """Everything of one world and seed, with ``seconds`` of all calls that led to it."""
    folder.mkdir(parents=True, exist_ok=True)
    # Small matrices: more threads only wait for each other.
    with threadpool_limits(1), _timed(folder / f"seed-{seed}.seconds.json") as seconds:
        world = make(seed)
        trainings = Trainings(world, seed, folder / f"seed-{seed}.scores.jsonl")
        facts = Facts.of(world, plan, trainings, seed, draws)
        result = {"sources": list(world.sources), "metric": world.metric.name, **describe(facts)}
        result["draws"] = []
        for n_runs in plan.runs:
            for draw in range(draws):
                path = folder / f"seed-{seed}.runs-{n_runs}.draw-{draw}.json"
                if not path.exists():
                    write_json(path, evaluate(facts, n_runs, draw))
                result["draws"].append(json.loads(path.read_text()))
    return {**result, "seconds": seconds[0]}


@contextmanager
def _timed(path: Path) -> Iterator[list[float]]:
    """A list of the seconds that this and former calls took, which the file keeps; whole at the end."""
    start = time.perf_counter()
    seconds = [json.loads(path.read_text()) if path.exists() else 0.0]
    try:
        yield seconds
    finally:
        seconds[0] = round(seconds[0] + time.perf_counter() - start, 1)
        write_json(path, seconds[0])


def write_json(path: Path, value: Any) -> None:
    """Write a file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.rename(path)


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)
