"""Results: tables of a user's own, published trainings read back, the catalog's routes for them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mixwright.cli import app
from mixwright.config import Settings
from mixwright.errors import ConfigError, DataError, MixwrightError, NotFoundError
from mixwright.fingerprint import fingerprint
from mixwright.jobs.results import import_results, merge_results
from mixwright.results import Results, read_runs, runs_table
from mixwright.schemas.manifests import ResultsManifest
from mixwright.schemas.references import Reference
from mixwright.schemas.training_runs import Metric, TrainingRun
from mixwright.service.app import create_app
from mixwright.store import Store

RUNS = (
    TrainingRun({"wiki": 0.25, "web": 0.75}, 20_000, 3.5),
    TrainingRun({"wiki": 1.0, "web": 0.0}, 80_000, -2.0),
)


def written(tmp_path: Path, text: str, name: str = "table") -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("weight:wiki,weight:web,size,score,note\n0.25,.75,20000,3.5,x\n1,0,8e4,-2,\n", None),
        ("\ufeffweight:wiki;weight:web;size;score\r\n1;3;20000;3.5\r\n\r\n7;0;80000;-2\r\n", None),
        ("size\tscore\twiki\tweb\n20000\t3.5\t25\t75\n80000\t-2\t100\t0\n", ["wiki", "web"]),
        ('size, score ,wiki,web\n20000,"3.5",1,3\n80000,-2,1,0\n', ["wiki", "web"]),
        (
            '[{"weights": {"wiki": 1, "web": 3}, "size": 20000, "score": 3.5},\n'
            ' {"weights": {"wiki": 1}, "size": 80000.0, "score": -2, "seed": 4}]',
            None,
        ),
        (
            '{"weights": {"web": 3, "wiki": 1}, "size": 20000, "score": 3.5}\n\n'
            '{"weights": {"wiki": 1}, "size": 80000, "score": -2}\n',
            ["wiki", "web"],
        ),
        (
            '{"weight:wiki": 0.25, "weight:web": 0.75, "size": 20000, "score": 3.5}\n'
            '{"weight:wiki": 2, "weight:web": 0, "size": 80000, "score": -2}',
            None,
        ),
        (
            '[{"wiki":1,"web":3,"size":20000,"score":3.5},{"wiki":1,"web":0,"size":80000,"score":-2}]',
            ["wiki", "web"],
        ),
    ],
)
def test_every_form_of_a_table_gives_the_same_runs(tmp_path: Path, text: str, sources: list[str] | None) -> None:
    found = read_runs(written(tmp_path, text), sources)
    assert found == RUNS
    assert [list(run.weights) for run in found] == [["wiki", "web"]] * 2


@pytest.mark.parametrize(
    ("text", "sources", "message"),
    [
        ("", None, "table: no runs in it: give a row"),
        ("weight:a,size,score\n", None, "no runs in it"),
        ("[]", None, "no runs in it"),
        ("weight:a,size,score\n1,2,abc\n", None, "table, line 2: 'score' is 'abc': give a number"),
        ("\n\nweight:a,size,score\n1,2,3\n1,2,nan\n", None, "line 5: 'score' is 'nan': give a finite number"),
        ("weight:a,size,score\n1,2,inf\n", None, "give a finite number"),
        ("weight:a,size,score\n1,2,\n", None, "line 2: 'score' is empty"),
        ("weight:a,size,score\n-1,2,3\n", None, "line 2: weight of 'a' is -1: weights are 0 or more"),
        ("weight:a,size,score\n0,2,3\n", None, "line 2: all weights are 0"),
        ("weight:a,size,score\n1,0,3\n", None, "line 2: size is 0: give a whole number"),
        ("weight:a,size,score\n1,2.5,3\n", None, "size is 2.5: give a whole number"),
        ("weight:a,score\n1,3\n", None, r"line 2: no 'size' \(there are weight:a, score\)"),
        (
            "a,b,size,score\n1,2,3,4\n",
            None,
            r"line 2: no weights: name its columns weight:NAME.*a, b, size, score",
        ),
        ("a,b,size,score\n1,2,3,4\n", ["a", "c"], "line 2: no 'c'"),
        ("weight:a,weight:b,size,score\n1,2,3,4\n", ["a"], "weight of 'b', which is no source"),
        ("weight:a,size,score\n1,2\n", None, "line 2: 2 cells under 3 columns"),
        ("weight:a,weight:a,size,score\n1,1,2,3\n", None, "line 1: column 'weight:a' is there twice"),
        ('weight:a,size,score\n1,"2,3\n', None, "line 2: not CSV"),
        ('[{"weights": {"a": true}, "size": 1, "score": 1}]', None, "object 1: weight of 'a' is True"),
        (
            '[{"weights": {"a": "x"}, "size": 1, "score": 1}]',
            None,
            "object 1: weight of 'a' is 'x': give a number",
        ),
        ('[{"weights": {}, "size": 1, "score": 1}]', None, "object 1: no weights"),
        ('[{"weights": {"a": 1}, "size": 1, "score": null}]', None, "object 1: 'score' is empty"),
        ('[{"weights": {"a": 1}, "size": 1, "score": [2]}]', None, r"'score' is \[2\]: give a number"),
        ('[{"weights": {"a": 1}, "size": 1, "score": NaN}]', None, "give a finite number"),
        ("[1]", None, "object 1: not an object"),
        ("[{]", None, "table is not JSON"),
        ("[" * 200_000, None, "table is not JSON"),
        ('{"weights": {"a": 1}, "size": 1, "score": 1}\n{"weights"\n', None, "line 2: not JSON"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(
    tmp_path: Path, text: str, sources: list[str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_runs(written(tmp_path, text), sources)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"weight:a,size\xff\xfe")
    with pytest.raises(DataError, match="binary is not UTF-8"):
        read_runs(tmp_path / "binary")
    with pytest.raises(DataError, match="nowhere cannot be read"):
        read_runs(tmp_path / "nowhere")


CSV = "weight:wiki,weight:web,size,score\n0.25,0.75,20000,3.5\n1,0,80000,-2\n"


def test_an_imported_table_is_published_and_read_back(store: Store, tmp_path: Path) -> None:
    path, metric = written(tmp_path, CSV), Metric("accuracy", "maximize", 0.0, 1.0)
    manifest = import_results(store, path, "own", None, metric, "documents")
    assert (manifest.ref, manifest.n_rows, manifest.sources) == ("own@1", 2, ["wiki", "web"])
    assert (manifest.evaluator, manifest.validation, manifest.unit) == ("imported", None, "documents")
    assert manifest.warnings == [
        "2 of 2 scores are outside of 0 to 1 (3.5, say): correct the range of accuracy, or the scores"
    ]
    results = Results.open(store, "own")
    assert tuple(results.runs()) == RUNS
    assert results.manifest.metric == metric
    assert results.likelihoods() is None
    table = results.table()
    assert table.columns == ["weight:wiki", "weight:web", "size", "score", "seed", "seconds"]
    assert table["seed"].is_null().all()
    # The same table in another form is the same; another metric is not.
    other = written(tmp_path, json.dumps([{"weights": r.weights, "size": r.size, "score": r.score} for r in RUNS]))
    assert import_results(store, other, "own", None, metric, "documents") == manifest
    assert import_results(store, other, "own", None, Metric(), "documents").ref == "own@2"
    assert import_results(store, other, "own", ["web", "wiki"], metric, "documents").sources == ["web", "wiki"]


def test_wrong_requests_and_damaged_files_are_named(store: Store, tmp_path: Path) -> None:
    path = written(tmp_path, CSV)
    with pytest.raises(ConfigError, match="low must be below high"):
        import_results(store, path, "own", None, Metric(low=1.0, high=1.0), "tokens")
    with pytest.raises(ConfigError, match="given twice"):
        import_results(store, path, "own", ["wiki", "wiki"], Metric(), "tokens")
    with pytest.raises(NotFoundError, match="own"):
        Results.open(store, "own")
    manifest = import_results(store, path, "own", None, Metric(), "tokens")
    (store.directory(manifest) / "runs.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"results own@1: runs.parquet is missing or damaged"):
        Results.open(store, "own").runs()


def test_the_command_imports_and_shows(store: Store, tmp_path: Path) -> None:
    home, path = ["--home", str(store.home)], str(written(tmp_path, CSV, "runs.csv"))
    flags = ["--name", "own", "--metric", "loss", "--direction", "minimize"]
    done = CliRunner().invoke(app, ["pilot", "import", path, *flags, *home, "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert list(printed) == ["ref", "fingerprint", "n_rows", "metric", "sources"]
    assert printed["metric"] == {"name": "loss", "direction": "minimize", "low": None, "high": None}
    shown = json.loads(CliRunner().invoke(app, ["pilot", "show", "own", *home, "--json"]).stdout)
    assert shown["runs"][0] == {
        "weights": {"wiki": 0.25, "web": 0.75},
        "size": 20_000,
        "score": 3.5,
        "seed": None,
        "seconds": None,
    }
    text = CliRunner().invoke(app, ["pilot", "show", "own", *home]).stdout
    assert text.startswith("own@1: 2 trainings by imported; lower loss is better\n")
    assert [line.split() for line in text.splitlines()[1:3]] == [
        ["wiki", "web", "tokens", "loss"],
        ["25.00%", "75.00%", "20,000", "3.5000"],
    ]
    # What is shown as JSON can be imported again.
    again = written(tmp_path, json.dumps(shown["runs"]), "again.json")
    done = CliRunner().invoke(app, ["pilot", "import", str(again), *flags, *home, "--json"])
    assert json.loads(done.stdout)["ref"] == "own@1"
    failed = CliRunner().invoke(app, ["pilot", "import", str(tmp_path / "none"), *flags, *home])
    assert isinstance(failed.exception, MixwrightError)


def test_the_catalog_serves_results(store: Store, tmp_path: Path) -> None:
    manifest = import_results(store, written(tmp_path, CSV), "own", None, Metric(), "tokens")
    with TestClient(create_app(Settings(home=store.home), run_worker=False)) as client:
        (listed,) = client.get("/v1/results").json()["items"]
        assert (listed["kind"], listed["ref"], listed["n_rows"]) == ("results", "own@1", 2)
        detail = client.get("/v1/results/own")
        assert detail.json()["ref"] == "own@1"
        assert detail.json()["metric"]["direction"] == "minimize"
        assert detail.headers["etag"] == f'"{manifest.fingerprint}"'
        first = client.get("/v1/results/own@1/runs", params={"limit": 1})
        second = client.get("/v1/results/own/runs", params={"cursor": first.json()["next_cursor"]}).json()
        found: list[dict[str, Any]] = [*first.json()["items"], *second["items"]]
        assert [(run["weights"], run["size"], run["score"]) for run in found] == [
            (run.weights, run.size, run.score) for run in RUNS
        ]
        assert second["next_cursor"] is None
        same = client.get(
            "/v1/results/own@1/runs", params={"limit": 1}, headers={"if-none-match": first.headers["etag"]}
        )
        assert same.status_code == 304
        assert client.get("/v1/results/other/runs").status_code == 404
        assert client.get("/v1/results/own/runs", params={"cursor": "x"}).status_code == 422
    done = CliRunner().invoke(app, ["catalog", "show", "results:own", "--home", str(store.home)])
    assert json.loads(done.stdout)["kind"] == "results"


def with_likelihoods(store: Store, name: str, sources: list[str], size: int, values: np.ndarray) -> str:
    """Results of the single sources, with likelihoods, as a pilot job publishes them."""
    runs = [TrainingRun({source: 1.0}, size, float(number)) for number, source in enumerate(sources)]
    identity = fingerprint("results", [], {"name": name})
    with store.stage("results", Reference(name), identity) as staging:
        runs_table(sources, runs, seeds=[0] * len(runs)).write_parquet(staging.path / "runs.parquet")
        np.save(staging.path / "likelihoods.npy", values)
        draft = ResultsManifest(
            name=name,
            version=1,
            fingerprint=identity,
            files=[staging.entry("runs.parquet"), staging.entry("likelihoods.npy")],
            created_at=datetime.now(UTC),
            sources=sources,
            metric=Metric(),
            unit="tokens",
            evaluator="ngram",
            validation="held-out@1",
            n_rows=len(runs),
            likelihoods=True,
        )
        return store.publish(staging, draft).ref


def test_merged_results_have_every_run_once_in_the_order_of_the_first(store: Store, tmp_path: Path) -> None:
    small = with_likelihoods(store, "small", ["wiki", "web"], 100, np.asarray([[0.1, 0.2]]))
    large = with_likelihoods(store, "large", ["web", "wiki"], 900, np.asarray([[0.3, 0.4]]))
    own = import_results(store, written(tmp_path, CSV), "own", None, Metric(), "tokens")
    merged = merge_results(store, [small, large, own.ref, small], "all")
    found = Results.open(store, merged.ref)
    assert merged.sources == ["wiki", "web"]
    expected = [run for part in (small, large, own.ref) for run in Results.open(store, part).runs()]
    assert found.runs() == expected
    # The likelihoods of the larger runs, their columns turned round.
    np.testing.assert_array_equal(found.likelihoods(), [[0.4, 0.3]])
    assert [each.ref for each in merged.inputs] == [small, large, own.ref, small]
    assert merged.warnings == ["2 runs that occur several times are there once"]
    assert (merged.evaluator, merged.validation) == ("ngram, imported", "held-out@1")
    assert merge_results(store, [small, large, own.ref, small], "all") == merged


def test_results_that_cannot_be_compared_are_not_merged(store: Store, tmp_path: Path) -> None:
    table = written(tmp_path, CSV)
    import_results(store, table, "own", None, Metric(), "tokens")
    import_results(store, table, "other", None, Metric("accuracy"), "tokens")
    import_results(store, table, "counted", None, Metric(), "documents")
    with pytest.raises(DataError, match="own@1 and other@1 do not have the same metric"):
        merge_results(store, ["own", "other"], "all")
    with pytest.raises(DataError, match="do not have the same unit"):
        merge_results(store, ["own", "counted"], "all")
    with pytest.raises(ConfigError, match="name two results or more"):
        merge_results(store, ["own"], "all")
    merged = CliRunner().invoke(
        app, ["pilot", "merge", "own", "own", "--name", "all", "--home", str(store.home), "--json"]
    )
    assert merged.exit_code == 0, merged.output
    assert json.loads(merged.stdout)["n_rows"] == 2
