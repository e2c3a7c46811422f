"""The projektor examples: what is held out, tables against their own data, resumption, errors of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = ["--seeds", "1", "--draws", "1", "--repeats", "1"]


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


WORDS = {
    "river": "river stone water bridge boat flows under green old slow bank rain",
    "engine": "engine wheel brake piston turns fast metal oil gear heat valve road",
    "letter": "letter market paper reads writes ink seven news sent again name post",
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of their own words; one document in three is longer than a passage."""
    folder = tmp_path_factory.mktemp("corpora")
    draw = np.random.default_rng(0)
    for name, words in WORDS.items():
        texts = [" ".join(draw.choice(words.split(), 80 if n % 3 else 400)) for n in range(330)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


# Worlds


@pytest.mark.parametrize("kind", ["skew", "quality"])
def test_digits_are_held_out_and_drawn_in_proportion(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import projektor_study.digits as module
    from sklearn.datasets import load_digits

    seen: list[Any] = []

    def probe(vectors: Any, labels: Any, counts: Any, validation: Any, truth: Any) -> tuple[float, Any]:
        seen.append((vectors, labels, counts, validation, truth))
        return 0.5, np.ones(len(validation))

    monkeypatch.setattr(module, "linear_probe", probe)
    world = module.Digits(kind, 3)
    trained = world.train(np.asarray([0.0, 0.25, 0.75]), 402, np.random.default_rng(0))
    trained.likelihoods()
    (vectors, labels, counts, test, test_labels), (*_, validation, validation_labels) = seen
    assert counts.sum() == 402
    assert len(test) == len(validation) == 300
    parts = [{row.tobytes() for row in rows} for rows in (vectors, test, validation)]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    pixels, digits = load_digits(return_X_y=True)
    known = {(row / np.linalg.norm(row)).tobytes(): str(digit) for row, digit in zip(pixels, digits, strict=True)}
    for rows, given in ((test, test_labels), (validation, validation_labels)):
        assert [known[row.tobytes()] for row in rows] == given
    right = np.asarray([known[row.tobytes()] == label for row, label in zip(vectors, labels, strict=True)])
    if kind == "skew":
        # Of the first source, which has no share, only strays are there: 4 % of its digits.
        digits_of_first = np.isin(labels, list("0123"))
        assert right.all()
        assert 0 < counts[digits_of_first].sum() < 0.15 * 402
    else:
        # Nine in ten of the random labels are wrong.
        assert counts[~right].sum() / 402 == pytest.approx(0.9 * (0.25 * 0.35 + 0.75 * 0.6), abs=0.08)
    assert world.available.sum() == len(pixels) - 600


def test_passages_are_held_out_and_drawn_in_proportion(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import projektor_study.text as module

    prepared = tmp_path / "passages"
    module.prepare(module.find_sources(corpora, None), "hashing:32", prepared)
    world = module.Text(prepared, tuple(sorted(WORDS)), 1)
    seen: list[list[str]] = []

    class Model:
        def bits_per_byte(self, texts: list[str]) -> float:
            seen.append(texts)
            return 1.0

        def probabilities(self, texts: list[str]) -> Any:
            seen.append(texts)
            return np.ones(1)

    def train(texts: list[str], order: int) -> Model:
        seen.append(texts)
        return Model()

    monkeypatch.setattr(module.NgramModel, "train", train)
    # More characters of the second source than it has.
    size = int(2 * world.available.max())
    world.train(np.asarray([0.25, 0.75, 0.0]), size, np.random.default_rng(0)).likelihoods()
    trained, test, validation = seen
    assert not {*test} & {*validation}
    assert not {*trained} & {*test, *validation}
    assert all(len(text) <= 1500 for text in (*trained, *test, *validation))

    def of(name: str, texts: list[str]) -> list[str]:
        return [text for text in texts if {*text[20:-20].split()[1:-1]} <= {*WORDS[name].split()}]

    names = sorted(WORDS)
    assert [len(of(name, test)) for name in names] == [40, 24, 16]
    assert [len(of(name, validation)) for name in names] == [100, 60, 40]
    characters = [sum(map(len, of(name, trained))) for name in names]
    assert characters == pytest.approx([size / 4, 3 * size / 4, 0], abs=40)
    assert sum(map(len, trained)) == size


def test_trainings_are_kept_and_do_not_depend_on_their_order(tmp_path: Path) -> None:
    from projektor_study.world import PILOT, TRUTH, Trained, Trainings

    class Coin:
        sources = ("a", "b")
        made = 0

        def train(self, weights: Any, size: int, rng: np.random.Generator) -> Trained:
            self.made += 1
            value = float(rng.random()) + float(weights[0])
            return Trained(value, lambda: np.full(3, value))

    grid = np.asarray([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    world: Any = Coin()
    path = tmp_path / "scores.jsonl"
    found = Trainings(world, 0, path).scores(grid, 10, PILOT, range(2))
    assert found.shape == (2, 3)
    assert len({*found.ravel()}) == world.made == 6
    backwards = Trainings(world, 0, tmp_path / "other.jsonl")
    np.testing.assert_array_equal(backwards.scores(grid[::-1], 10, PILOT, [1, 0]), found[::-1, ::-1])
    assert backwards.scores(grid[:1], 10, TRUTH, [0]) != found[0, 0]
    # The models of the single sources are those of the pilots.
    np.testing.assert_array_equal(backwards.likelihoods(10, 1), np.tile(found[1, [0, 2]], (3, 1)))
    # A process that was killed left half of a line.
    path.write_text(path.read_text()[:-9])
    world.made = 0
    again = Trainings(world, 0, path)
    np.testing.assert_array_equal(again.scores(grid, 10, PILOT, range(2)), found)
    assert world.made == 1
    np.testing.assert_array_equal(Trainings(world, 0, path).scores(grid, 10, PILOT, range(2)), found)
    assert world.made == 1


def test_the_process_over_shares_adds_a_smooth_function_to_the_line() -> None:
    from projektor_study.evaluation import process_over_shares

    from mixwright.selectors.projektor.design import Design
    from mixwright.selectors.projektor.simplex import simplex_grid

    grid = simplex_grid(3, 10)
    transport = np.random.default_rng(0).random(len(grid))
    every = Design(grid, transport)
    rows = np.random.default_rng(1).permutation(len(grid))[:30]
    line = 2 + 3 * transport
    np.testing.assert_allclose(process_over_shares(every.take(rows), line[rows])(every), line, atol=0.02)
    losses = line + np.sin(3 * grid[:, 0])
    gaps = process_over_shares(every.take(rows), losses[rows])(every) - losses
    assert np.abs(gaps).mean() < 0.2 * np.sin(3 * grid[:, 0]).std()


# The whole scripts


def check_tables(results: dict[str, Any]) -> None:
    """The numbers of the tables, from the predictions, choices and truths beside them; one seed, one draw."""
    scale = results["scale"]
    for name, problem in results["problems"].items():
        tables, (seed,) = results["tables"][name], problem["seeds"]
        truth = np.asarray(seed["truth"])
        best = truth.max(axis=1) if problem["metric"] == "accuracy" else truth.min(axis=1)
        assert [draw["runs"] for draw in seed["draws"]] == results["runs"]
        for draw in seed["draws"]:
            column, rows = str(draw["runs"]), draw["rows"]
            assert len({*rows}) == draw["runs"]
            for predictor, predicted in draw["predicted"].items():
                seen = draw["rows_with_singles"] if predictor.endswith("(K + 3)") else rows
                unseen = [row for row in range(len(results["grid"])) if row not in seen]
                error = np.mean([abs(predicted[row] - truth[1, row]) for row in unseen])
                assert tables["stage1"][predictor][column] == [pytest.approx(scale * error), None]
            unseen = [row for row in range(len(results["grid"])) if row not in rows]
            inside = [
                abs(draw["predicted"]["auto"][row] - truth[1, row]) <= 1.96 * draw["deviations"]["auto"][row]
                for row in unseen
            ]
            assert tables["coverage"]["auto"][column][0] == pytest.approx(100 * np.mean(inside))
            gaps = [abs(draw["projected"]["power"][row] - truth[2, row]) for row in unseen]
            assert tables["stage2"]["power"][column][0] == pytest.approx(scale * np.mean(gaps))
            for method, choice in {**seed["choices"], **draw["choices"]}.items():
                scores = truth[1:, choice["row"]] if "row" in choice else choice["scores"]
                regrets = (
                    scale
                    * np.abs(np.asarray(scores) - best[1:])
                    * np.sign((best[1:] - scores) * (1 if problem["metric"] == "accuracy" else -1))
                )
                assert tables["regret at N1"][method][column][0] == pytest.approx(regrets[0], abs=1e-9)
                assert tables["regret at N"][method][column][0] == pytest.approx(regrets[1], abs=1e-9)
            pilots = np.asarray(seed["pilots"])[1, draw["draw"]][rows]
            found = pilots.argmax() if problem["metric"] == "accuracy" else pilots.argmin()
            assert draw["choices"]["best pilot"]["row"] == rows[found]
        gaps = [abs(a - b) for a, b in zip(seed["projected"]["log_linear"], truth[2], strict=True)]
        assert tables["stage2"]["log_linear"]["true means"][0] == pytest.approx(scale * np.mean(gaps))
        for cost, transport in seed["transports"].items():
            r = np.corrcoef(transport, truth[1])[0, 1]
            assert tables["correlation"][cost]["r"][0] == pytest.approx(r)


def test_digits_end_in_tables_and_plots_and_go_on_where_they_were(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import projektor_digits
    import projektor_study.digits
    from projektor_study import experiment

    out = tmp_path / "out"
    command = ["--out", str(out), "--grid", "5", "--runs", "12", "--sizes", "40", "160", "400", *TINY]
    assert projektor_digits.main(command) == 0
    text = (out / "results.md").read_text()
    assert capsys.readouterr().out.endswith(text + "\n")
    results = json.loads((out / "results.json").read_text())
    assert len(results["grid"]) == 21
    check_tables(results)
    errors = results["tables"]["skew"]["stage1"]
    assert f"| auto | {errors['auto']['12'][0]:.2f} | " in text.replace("**", "")
    assert errors["auto"]["12"][0] < 0.75 * errors["mean"]["12"][0]
    correlations = results["tables"]["quality"]["correlation"]
    # Features alone cannot see wrong labels.
    assert correlations["zero_one"]["r"][0] < -0.5
    assert correlations["zero_one"]["r"][0] < correlations["none"]["r"][0] - 0.3
    for plot in ("errors", "predicted", "transport"):
        assert (out / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert b"</svg>" in (out / f"{plot}.svg").read_bytes()

    def forbidden(*_: object) -> None:
        raise AssertionError("what was finished was done again")

    monkeypatch.setattr(experiment, "evaluate", forbidden)
    monkeypatch.setattr(projektor_study.digits, "linear_probe", forbidden)
    assert projektor_digits.main(command) == 0
    again = json.loads((out / "results.json").read_text())
    assert again["tables"] == results["tables"]
    assert projektor_digits.main([*command, "--sizes", "40", "160", "500"]) == 1
    error = capsys.readouterr().err
    assert "holds results of another sizes: name another folder by --out" in error
    assert error.count("\n") == 1


def test_text_ends_in_tables(corpora: Path, tmp_path: Path) -> None:
    import projektor_text

    out = tmp_path / "out"
    command = ["--out", str(out), "--data", str(corpora), "--sources", "river", "engine", "letter"]
    command += ["--encoder", "hashing:64", "--grid", "3", "--runs", "5", "--sizes", "2000", "8000", "20000", *TINY]
    assert projektor_text.main(command) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["problems"]["text"]["sources"] == ["river", "engine", "letter"]
    check_tables(results)
    # Five runs are too few for its twelve coefficients.
    assert "pq_ols" not in results["tables"]["text"]["stage1"]
    assert "published" not in (out / "results.md").read_text()


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        (None, [], "there is no folder"),
        ({"a": "", "b": ""}, [], "2 .jsonl files of"),
        ({"a": "", "b": "", "c": "", "d": ""}, [], "4 .jsonl files of"),
        ({"a": ""}, ["--sources", "a", "b", "c"], "there is no file"),
        ({"a": '{"text": "x"}\n{"body": "x"}\n', "b": "", "c": ""}, [], "a.jsonl:2: no text: give JSON lines"),
        ({"a": '{"text": "x"}\n', "b": "", "c": ""}, [], "a.jsonl has 0 passages of text: give 280 or more"),
        ({}, ["--runs", "64"], "--runs of a grid of 66 mixtures: give numbers from 4 to 62"),
        ({}, ["--sizes", "9", "8", "10"], "do not grow: give N0 < N1 < N"),
        ({}, ["--seeds", "0"], "--seeds 0: give 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, str] | None,
    more: list[str],
    message: str,
) -> None:
    import projektor_text

    data = tmp_path / "data"
    if files is not None:
        data.mkdir()
        for name, text in files.items():
            (data / f"{name}.jsonl").write_text(text)
    assert projektor_text.main(["--out", str(tmp_path / "out"), "--data", str(data), *more]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_data_the_texts_are_those_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import projektor_study.text as module

    from mixwright.cli import demo_texts

    names = [corpus.name for corpus in demo_texts.DEMO_CORPORA]
    small = tuple(
        demo_texts.DemoCorpus(name, "", 2, lambda name=name: iter([{"text": name}] * 3)) for name in names
    )
    monkeypatch.setattr(demo_texts, "DEMO_CORPORA", small)
    (tmp_path / "python-source.jsonl").write_text("kept")
    module.write_demo_texts(tmp_path)
    files = module.find_sources(tmp_path, None)
    assert [path.stem for path in files] == sorted(module.DEMO_SOURCES)
    assert files[-1].read_text() == "kept"
    assert files[0].read_text() == '{"text":"package-descriptions"}\n' * 2
