"""Tables of the study: means over seeds, with the standard error of the mean of the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from projektor_study.evaluation import OVER_SHARES, PLAIN, PROJECTIONS, SINGLES, WITH_SINGLES

FloatArray = npt.NDArray[np.float64]
Estimate = list[float | None]
"""Mean and standard error; the latter is None for one seed."""
Table = dict[str, dict[str, Estimate]]
"""Estimates by row and column."""

PREDICTED = (
    *PLAIN[:7],
    "ot_gp",
    OVER_SHARES,
    *PLAIN[7:],
    "auto",
    *(name + SINGLES for name in WITH_SINGLES),
    "auto" + SINGLES,
)
"""Rows of the first table. Those with three more trainings are at its end."""
METHODS = (
    "projektor",
    "projektor, off the grid",
    "published",
    "least transport",
    "least transport, off the grid",
    "uniform",
    "proportional",
    "best pilot",
    "random",
    "regmix",
    "mixing_law",
    "mixmin",
    "projektor" + SINGLES,
)


def tables(results: Mapping[str, Any]) -> dict[str, dict[str, Table]]:
    """By problem: errors (``stage1``), ``coverage``, ``stage2``, ``regret`` at N1 and at N, ``correlation``."""
    found: dict[str, dict[str, Table]] = {}
    for name, problem in results["problems"].items():
        cells = _Cells()
        for seed in problem["seeds"]:
            _errors(cells, seed, results["scale"])
            _regrets(cells, seed, results, problem["metric"])
            for cost, transport in seed["transports"].items():
                correlation = float(np.corrcoef(transport, seed["truth"][1])[0, 1])
                cells.add("correlation", cost, "r", seed["seed"], correlation)
        found[name] = cells.tables()
    return found


class _Cells:
    """Numbers by table, row, column and seed; several of one seed are averaged first."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], dict[int, list[float]]] = {}

    def add(self, table: str, row: str, column: str, seed: int, value: float) -> None:
        self._values.setdefault((table, row, column), {}).setdefault(seed, []).append(value)

    def tables(self) -> dict[str, Table]:
        found: dict[str, Table] = {}
        for (table, row, column), seeds in self._values.items():
            means = [float(np.mean(values)) for values in seeds.values()]
            found.setdefault(table, {}).setdefault(row, {})[column] = estimate(means)
        return found


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of the seeds' values, and its standard error."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return [float(np.mean(values)), error]


def _errors(cells: _Cells, seed: Mapping[str, Any], scale: float) -> None:
    """Mean absolute errors on the mixtures of the grid that a predictor has not seen."""
    truth = np.asarray(seed["truth"])
    for name, projected in seed["projected"].items():
        gaps = np.abs(np.asarray(projected) - truth[2])
        cells.add("stage2", name, "true means", seed["seed"], scale * float(gaps.mean()))
    for draw in seed["draws"]:
        column = str(draw["runs"])
        errors = {name: np.abs(np.asarray(each) - truth[1]) for name, each in draw["predicted"].items()}
        unseen = {
            True: np.setdiff1d(np.arange(truth.shape[1]), draw["rows_with_singles"]),
            False: np.setdiff1d(np.arange(truth.shape[1]), draw["rows"]),
        }
        for name, gaps in errors.items():
            rows = unseen[name.endswith(SINGLES)]
            cells.add("stage1", name, column, seed["seed"], scale * float(gaps[rows].mean()))
        for name, deviations in draw["deviations"].items():
            inside = errors[name] <= 1.96 * np.asarray(deviations)
            cells.add("coverage", name, column, seed["seed"], 100 * float(inside[unseen[False]].mean()))
        for name, projected in draw["projected"].items():
            gaps = np.abs(np.asarray(projected) - truth[2])[unseen[False]]
            cells.add("stage2", name, column, seed["seed"], scale * float(gaps.mean()))


def _regrets(cells: _Cells, seed: Mapping[str, Any], results: Mapping[str, Any], metric: str) -> None:
    """What the choices lose to the best mixture of the grid, by the truth at N1 and at N."""
    sign = -1 if metric == "accuracy" else 1
    losses = sign * np.asarray(seed["truth"])[1:]
    least = losses.min(axis=1)

    def add(method: str, column: str, scores: FloatArray) -> None:
        for table, regret in zip(("regret at N1", "regret at N"), sign * scores - least, strict=True):
            cells.add(table, method, column, seed["seed"], results["scale"] * float(regret))

    for draw in seed["draws"]:
        column = str(draw["runs"])
        for method, choice in {**seed["choices"], **draw["choices"]}.items():
            row = choice.get("row")
            add(method, column, np.asarray(choice["scores"]) if row is None else sign * losses[:, row])
        add("random", column, sign * losses.mean(axis=1))


def gap_to_best(results: Mapping[str, Any], problem: str, runs: int) -> tuple[str, Estimate]:
    """The predictor of K runs with the least error besides auto, and auto's error less its own, seed by seed."""
    errors = results["tables"][problem]["stage1"]
    column = str(runs)
    others = [name for name in errors if name != "auto" and not name.endswith(SINGLES) and column in errors[name]]
    best = min(others, key=lambda name: errors[name][column][0])
    gaps = []
    for seed in results["problems"][problem]["seeds"]:
        truth = np.asarray(seed["truth"][1])
        of_seed = []
        for draw in (each for each in seed["draws"] if each["runs"] == runs):
            rows = np.setdiff1d(np.arange(len(truth)), draw["rows"])
            mae = [np.abs(np.asarray(draw["predicted"][name]) - truth)[rows].mean() for name in ("auto", best)]
            of_seed.append(results["scale"] * float(mae[0] - mae[1]))
        gaps.append(float(np.mean(of_seed)))
    return best, estimate(gaps)


# Markdown


def markdown(results: Mapping[str, Any]) -> str:
    """All tables, with the command, versions and seconds that made them."""
    software = ", ".join(f"{name} {version}" for name, version in results["software"].items())
    problems = list(results["problems"])
    seeds = len(results["problems"][problems[0]]["seeds"])
    parts = [
        f"# {results['title']}",
        f"`{results['command']}`",
        f"{results['seconds']:,} s ({results['worker_seconds']:,} s of work, earlier calls included); {software}.",
        f"{results['about']} Mean ± standard error over {seeds} {'seeds' if seeds > 1 else 'seed'}; the least of "
        "each column is bold.",
        f"## Stage 1: mean absolute error at N1, {results['unit']}",
        f"K training mixtures, all others of the grid predicted. Rows with{SINGLES} have the three single sources "
        "as runs besides, whose models give likelihoods, and are not tested on them.",
        _stage1(results, problems),
        _gaps(results, problems),
        "## Coverage of the 95 % interval, %",
        _by_runs(results, problems, "coverage", ("ot_gp", "auto"), bold=False, digits=0),
        f"## Stage 2: mean absolute error at N, {results['unit']}",
        "From the true means of all mixtures at N0 and N1, and from what auto fits to K runs at both.",
        _stage2(results, problems),
        *_regret_parts(results, problems),
        "## Correlation of the transport with the true score at N1",
        _correlations(results, problems),
    ]
    return "\n\n".join(parts) + "\n"


def _stage1(results: Mapping[str, Any], problems: Sequence[str]) -> str:
    return _by_runs(results, problems, "stage1", PREDICTED, apart=SINGLES)


def _gaps(results: Mapping[str, Any], problems: Sequence[str]) -> str:
    lines = []
    for problem in problems:
        for runs in results["runs"]:
            best, gap = gap_to_best(results, problem, runs)
            lines.append(f"- {problem}, K = {runs}: {_text(gap, results, sign=True)} against {best}")
    return "Error of auto less that of the best of the other rows, seed by seed:\n\n" + "\n".join(lines)


def _stage2(results: Mapping[str, Any], problems: Sequence[str]) -> str:
    columns = ["true means", *map(str, results["runs"])]
    return _table(results, problems, "stage2", PROJECTIONS, columns)


def _regret_parts(results: Mapping[str, Any], problems: Sequence[str]) -> list[str]:
    return [
        f"## Regret of the choices at N, {results['unit']}",
        "What a choice loses to the best mixture of the grid, by the truth. Choices are of the grid where nothing "
        "else is said; uniform, proportional and what is off the grid are trained as they are (and may beat the "
        f"grid). projektor{SINGLES} has the three single sources as runs besides, mixmin has them alone.",
        _by_runs(results, problems, "regret at N", METHODS, apart=SINGLES),
        f"## Regret of the same choices at N1, {results['unit']}",
        _by_runs(results, problems, "regret at N1", METHODS, apart=SINGLES),
    ]


def _correlations(results: Mapping[str, Any], problems: Sequence[str]) -> str:
    costs = list(results["tables"][problems[0]]["correlation"])
    names = {"none": "features"}
    rows = []
    for cost in costs:
        cells = (results["tables"][problem]["correlation"][cost]["r"] for problem in problems)
        rows.append([names.get(cost, cost), *(_cell(each, 2) for each in cells)])
    return _lines(["label cost", *problems], rows)


def _by_runs(
    results: Mapping[str, Any],
    problems: Sequence[str],
    table: str,
    rows: Sequence[str],
    *,
    apart: str | None = None,
    bold: bool = True,
    digits: int | None = None,
) -> str:
    columns = [str(runs) for runs in results["runs"]]
    return _table(results, problems, table, rows, columns, apart, bold, digits)


def _table(
    results: Mapping[str, Any],
    problems: Sequence[str],
    table: str,
    rows: Sequence[str],
    columns: Sequence[str],
    apart: str | None = None,
    bold: bool = True,
    digits: int | None = None,
) -> str:
    """Rows by columns of each problem; the least of a column is bold, rows that end in ``apart`` aside."""
    places = _digits(results) if digits is None else digits
    found = {problem: results["tables"][problem][table] for problem in problems}
    shown = [row for row in rows if any(row in found[problem] for problem in problems)]
    cells = {row: [row] for row in shown}
    for problem in problems:
        for column in columns:
            values = {row: found[problem].get(row, {}).get(column) for row in shown}
            least = min(
                (
                    round(each[0], places)
                    for row, each in values.items()
                    if each and not (apart and row.endswith(apart))
                ),
                default=None,
            )
            for row, value in values.items():
                text = "–" if value is None else _cell(value, places)
                best = bold and value is not None and round(value[0], places) == least
                cells[row].append(f"**{text}**" if best and not (apart and row.endswith(apart)) else text)
    heads = [f"{problem}, {_column(column)}" for problem in problems for column in columns]
    return _lines(["", *heads], list(cells.values()))


def _column(column: str) -> str:
    return f"K = {column}" if column.isdigit() else column


def _digits(results: Mapping[str, Any]) -> int:
    return 2 if results["scale"] > 1 else 3


def _text(value: Estimate, results: Mapping[str, Any], sign: bool = False) -> str:
    return _cell(value, _digits(results), sign)


def _cell(value: Estimate, digits: int, sign: bool = False) -> str:
    mean, error = value
    # Rounded, and without the sign of a zero.
    text = f"{round(mean, digits) + 0.0:{'+' if sign else ''}.{digits}f}"
    return text if error is None else f"{text} ± {error:.{digits}f}"


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))
