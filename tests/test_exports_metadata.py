"""Documents about a mixture: Croissant, OpenLineage and MLflow, checked by their specifications and libraries."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from exports_support import SIZES, export, published_mixtures, served
from fastapi.testclient import TestClient

from mixwright.config import Settings
from mixwright.jobs.exports.lineage import COLUMNS
from mixwright.jobs.exports.registry import EXPORT_FORMATS
from mixwright.schemas.manifests import MixtureManifest
from mixwright.selectors.streams import ROW_SCHEMA
from mixwright.service.app import create_app
from mixwright.store import Store

SERVICE = "http://127.0.0.1:8000/"


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return published_mixtures(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(mixtures: Store) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(home=mixtures.home), run_worker=False)) as client:
        yield client


def document(store: Store, name: str, out: Path, service: str | None = None) -> Any:
    result = export(store, "staged", name, out, service)
    file = EXPORT_FORMATS[name].document
    assert file is not None
    if service is not None:
        # A service wants the document alone: no rows are written.
        assert [each.path for each in result.files] == [file]
    return json.loads((out / file).read_text())


def manifest_of(store: Store) -> MixtureManifest:
    manifest = store.manifest("staged", "mixture")
    assert isinstance(manifest, MixtureManifest)
    return manifest


def test_every_column_of_a_row_is_explained() -> None:
    assert list(COLUMNS) == ROW_SCHEMA.names


class TestCroissant:
    def test_it_has_what_the_specification_requires(self, mixtures: Store, tmp_path: Path) -> None:
        found, manifest = document(mixtures, "croissant", tmp_path / "out"), manifest_of(mixtures)
        assert found["@type"] == "sc:Dataset"
        assert found["conformsTo"] == "http://mlcommons.org/croissant/1.1"
        assert found["name"] == "staged@1"
        assert found["version"] == "1.0.0"
        assert found["url"] == f"urn:mixwright:mixture:staged@1:{manifest.fingerprint}"
        assert found["datePublished"] == manifest.created_at.date().isoformat()
        assert found["license"].startswith("unknown")
        assert found["creator"]["name"] == "mixwright, selector domain-tags"
        assert f"{manifest.n_tokens:,} tokens" in found["description"]
        used = {key.split(":")[0] for key in found if ":" in key}
        assert used <= set(found["@context"])

    def test_the_files_are_the_rows_with_their_checksums(self, mixtures: Store, tmp_path: Path) -> None:
        out = tmp_path / "out"
        *files, together = document(mixtures, "croissant", out)["distribution"]
        assert together["@type"] == "cr:FileSet"
        assert sorted(path.relative_to(out).as_posix() for path in out.glob(together["includes"])) == [
            each["contentUrl"] for each in files
        ]
        rows: list[dict[str, Any]] = []
        for each in files:
            content = (out / each["contentUrl"]).read_bytes()
            assert each["sha256"] == hashlib.sha256(content).hexdigest()
            assert each["contentSize"] == f"{len(content)} B"
            rows += pq.read_table(out / each["contentUrl"]).to_pylist()
        assert rows == served(mixtures, "staged")

    def test_every_column_is_a_field(self, mixtures: Store, tmp_path: Path) -> None:
        (record_set,) = document(mixtures, "croissant", tmp_path / "out")["recordSet"]
        kinds = {each["source"]["extract"]["column"]: each["dataType"] for each in record_set["field"]}
        whole = {"position", "epoch", "n_tokens"}
        assert kinds == {name: "sc:Integer" if name in whole else "sc:Text" for name in ROW_SCHEMA.names}
        assert all(each["@id"] == f"rows/{each['name']}" for each in record_set["field"])

    def test_it_says_what_the_mixture_was_made_of_and_how(self, mixtures: Store, tmp_path: Path) -> None:
        found, manifest = document(mixtures, "croissant", tmp_path / "out"), manifest_of(mixtures)
        corpora = {each["@id"]: each["identifier"] for each in found["prov:wasDerivedFrom"]}
        expected = {name: mixtures.manifest(name, "corpus").fingerprint for name in SIZES}
        assert corpora == {f"urn:mixwright:corpus:{name}@1:{value}": value for name, value in expected.items()}
        told = {
            each["name"]: json.loads(each["value"]) for each in found["prov:wasGeneratedBy"]["additionalProperty"]
        }
        assert told == {**manifest.parameters, "budget": manifest.budget, "seed": manifest.seed}

    def test_a_service_is_pointed_into(self, mixtures: Store, tmp_path: Path) -> None:
        found = document(mixtures, "croissant", tmp_path / "out", SERVICE)
        (rows,) = found["distribution"]
        assert rows["contentUrl"] == "http://127.0.0.1:8000/v1/mixtures/staged@1/rows"
        assert found["url"] == "http://127.0.0.1:8000/v1/mixtures/staged@1"
        # Without a checksum a file object is only valid in a live data set.
        assert "sha256" not in rows
        assert found["isLiveDataset"] is True
        (record_set,) = found["recordSet"]
        assert all(each["source"]["fileObject"] == {"@id": rows["@id"]} for each in record_set["field"])

    def test_a_missing_licence_is_a_warning(self, mixtures: Store, tmp_path: Path) -> None:
        warnings = export(mixtures, "plain", "croissant", tmp_path / "out").warnings
        assert warnings == [
            "no licence is recorded for the corpora: the document says so, and only you can name one"
        ]

    @pytest.mark.parametrize("mixture", ["plain", "staged"])
    @pytest.mark.filterwarnings("ignore")
    def test_its_library_finds_no_fault_and_reads_the_rows(
        self, mixtures: Store, tmp_path: Path, mixture: str
    ) -> None:
        mlcroissant = pytest.importorskip("mlcroissant")
        export(mixtures, mixture, "croissant", tmp_path / "out")
        found = mlcroissant.Dataset(str(tmp_path / "out/croissant.json"))
        issues = found.metadata.ctx.issues
        assert not issues.errors
        assert not issues.warnings
        rows = [
            {
                key.removeprefix("rows/"): value.decode() if isinstance(value, bytes) else value
                for key, value in row.items()
            }
            for row in found.records("rows")
        ]
        assert rows == served(mixtures, mixture)
        export(mixtures, mixture, "croissant", tmp_path / "live", SERVICE)
        live = mlcroissant.Dataset(str(tmp_path / "live/croissant.json")).metadata.ctx.issues
        assert not live.errors
        assert not live.warnings


class TestOpenLineage:
    def test_one_run_starts_and_completes(self, mixtures: Store, tmp_path: Path) -> None:
        events, manifest = document(mixtures, "openlineage", tmp_path / "out"), manifest_of(mixtures)
        assert [each["eventType"] for each in events] == ["START", "COMPLETE"]
        urn = f"urn:mixwright:mixture:staged@1:{manifest.fingerprint}"
        for event in events:
            assert event["run"]["runId"] == str(uuid.uuid5(uuid.NAMESPACE_URL, urn))
            assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
            moment = datetime.fromisoformat(event["eventTime"])
            assert abs((moment - manifest.created_at).total_seconds()) < 0.001
        start, complete = ({**each, "eventType": ""} for each in events)
        assert start == complete

    def test_the_same_mixture_gives_the_same_bytes(self, mixtures: Store, tmp_path: Path) -> None:
        documents = []
        for name in ("first", "second"):
            document(mixtures, "openlineage", tmp_path / name)
            documents.append((tmp_path / name / "openlineage.json").read_bytes())
        assert documents[0] == documents[1]

    def test_data_sets_have_their_versions_sizes_and_columns(self, mixtures: Store, tmp_path: Path) -> None:
        _, event = document(mixtures, "openlineage", tmp_path / "out")
        manifest = manifest_of(mixtures)
        inputs = {each["name"]: each for each in event["inputs"]}
        assert set(inputs) == {f"corpora/{name}" for name in SIZES}
        for component in manifest.components:
            each = inputs[f"corpora/{component.name}"]
            assert each["inputFacets"]["inputStatistics"]["rowCount"] == SIZES[component.name]
            tags = {tag["key"]: tag["value"] for tag in each["facets"]["tags"]["tags"]}
            assert float(tags[f"{component.name}.weight"]) == component.weight
            assert int(tags[f"{component.name}.rows"]) == component.n_rows
            assert tags["fingerprint"] == component.fingerprint
        (output,) = event["outputs"]
        assert output["outputFacets"]["outputStatistics"]["rowCount"] == manifest.n_rows
        fields = output["facets"]["schema"]["fields"]
        assert [each["name"] for each in fields] == ROW_SCHEMA.names
        assert [each["ordinal_position"] for each in fields] == list(range(1, len(fields) + 1))

    def test_every_facet_names_its_producer_and_its_own_schema(self, mixtures: Store, tmp_path: Path) -> None:
        for event in document(mixtures, "openlineage", tmp_path / "out"):
            facets = facets_of(event)
            assert len(facets) > 10
            for facet in facets:
                assert facet["_producer"].startswith("urn:")
                name = facet["_schemaURL"].rsplit("/", 1)[1]
                assert f"/{name}.json#/$defs/{name}" in facet["_schemaURL"]

    def test_a_service_is_the_namespace(self, mixtures: Store, tmp_path: Path) -> None:
        for event in document(mixtures, "openlineage", tmp_path / "out", SERVICE):
            named = [event["job"], *event["inputs"], *event["outputs"]]
            assert {each["namespace"] for each in named} == {"http://127.0.0.1:8000"}

    def test_its_library_makes_the_same_events(self, mixtures: Store, tmp_path: Path) -> None:
        pytest.importorskip("openlineage.client.event_v2")
        for event in document(mixtures, "openlineage", tmp_path / "out"):
            assert without_empty(event_of_library(event)) == without_empty(event)


def facets_of(event: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [event["run"]["facets"], event["job"]["facets"]]
    for each in event["inputs"] + event["outputs"]:
        groups += [each["facets"], each.get("inputFacets", {}), each.get("outputFacets", {})]
    return [facet for group in groups for facet in group.values()]


def event_of_library(event: dict[str, Any]) -> Any:
    """The event built from openlineage-python's classes; a facet of another schema version is an error."""
    from openlineage.client import event_v2, facet_v2
    from openlineage.client.serde import Serde

    nested = {
        "SchemaDatasetFacet": ("fields", facet_v2.schema_dataset.SchemaDatasetFacetFields),
        "TagsDatasetFacet": ("tags", facet_v2.tags_dataset.TagsDatasetFacetFields),
        "ExecutionParametersRunFacet": ("parameters", facet_v2.execution_parameters_run.ExecutionParameter),
    }
    known = {
        name: value
        for module in vars(facet_v2).values()
        for name, value in getattr(module, "__dict__", {}).items()
    }

    def built(facets: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for key, facet in facets.items():
            name = facet["_schemaURL"].rsplit("/", 1)[1]
            values = {field: value for field, value in facet.items() if not field.startswith("_")}
            if name in nested:
                field, kind = nested[name]
                values[field] = [kind(**each) for each in values[field]]
            made[key] = known[name](**values, producer=facet["_producer"])
            assert made[key]._schemaURL == facet["_schemaURL"]
        return made

    def data_sets(kind: Any, given: list[dict[str, Any]], own: str) -> list[Any]:
        return [
            kind(each["namespace"], each["name"], facets=built(each["facets"]), **{own: built(each[own])})
            for each in given
        ]

    made = event_v2.RunEvent(
        eventType=event_v2.RunState[event["eventType"]],
        eventTime=event["eventTime"],
        producer=event["producer"],
        run=event_v2.Run(event["run"]["runId"], built(event["run"]["facets"])),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"], built(event["job"]["facets"])),
        inputs=data_sets(event_v2.InputDataset, event["inputs"], "inputFacets"),
        outputs=data_sets(event_v2.OutputDataset, event["outputs"], "outputFacets"),
    )
    return json.loads(Serde.to_json(made))


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_empty(each) for key, each in value.items() if each not in (None, [], {})}
    return [without_empty(each) for each in value] if isinstance(value, list) else value


class TestMlflow:
    def test_the_entity_has_strings_only_and_a_short_digest(self, mixtures: Store, tmp_path: Path) -> None:
        found, manifest = document(mixtures, "mlflow", tmp_path / "out"), manifest_of(mixtures)
        assert list(found) == ["name", "digest", "source_type", "source", "schema", "profile"]
        assert all(isinstance(value, str) for value in found.values())
        assert found["digest"] == manifest.fingerprint[:8]
        assert (found["name"], found["source_type"]) == ("staged@1", "local")
        assert Path(json.loads(found["source"])["uri"], "manifest.json").is_file()
        columns = json.loads(found["schema"])["mlflow_colspec"]
        assert [(each["name"], each["required"]) for each in columns] == [
            (field.name, not field.nullable) for field in ROW_SCHEMA
        ]
        profile = json.loads(found["profile"])
        assert (profile["num_rows"], profile["num_tokens"]) == (manifest.n_rows, manifest.n_tokens)
        assert profile["weights"] == {each.name: each.weight for each in manifest.components}

    def test_a_service_is_the_source(self, mixtures: Store, tmp_path: Path) -> None:
        found = document(mixtures, "mlflow", tmp_path / "out", SERVICE)
        assert found["source_type"] == "http"
        assert json.loads(found["source"]) == {"url": "http://127.0.0.1:8000/v1/mixtures/staged@1/rows"}

    @pytest.mark.filterwarnings("ignore")
    def test_its_library_takes_the_entity(self, mixtures: Store, tmp_path: Path) -> None:
        entities = pytest.importorskip("mlflow.entities")
        from mlflow.data.dataset_source_registry import get_dataset_source_from_json
        from mlflow.types.schema import Schema

        for name, service in (("local", None), ("http", SERVICE)):
            found = document(mixtures, "mlflow", tmp_path / name, service)
            entity = entities.Dataset(**found)
            assert entities.Dataset.from_proto(entity.to_proto()) == entity
            source = get_dataset_source_from_json(found["source"], found["source_type"])
            assert source._get_source_type() == name
            columns = json.dumps(json.loads(found["schema"])["mlflow_colspec"])
            assert Schema.from_json(columns).input_names() == ROW_SCHEMA.names


class TestOverHttp:
    @pytest.mark.parametrize("name", ["croissant", "mlflow", "openlineage"])
    def test_a_document_points_into_the_service_that_was_asked(
        self, client: TestClient, mixtures: Store, name: str
    ) -> None:
        parts = {"format": name}
        first = client.get("/v1/mixtures/staged/export", params=parts)
        assert first.status_code == 200
        assert "http://testserver" in first.text
        assert str(mixtures.home) not in first.text
        other = client.get("/v1/mixtures/staged/export", params=parts, headers={"host": "localhost:8123"})
        assert "testserver" not in other.text
        assert "http://localhost:8123" in other.text
        assert other.headers["etag"] != first.headers["etag"]

    def test_the_rows_that_croissant_names_are_there(self, client: TestClient, mixtures: Store) -> None:
        found = client.get("/v1/mixtures/staged/export", params={"format": "croissant"}).json()
        answer = client.get(found["distribution"][0]["contentUrl"])
        assert [json.loads(line) for line in answer.text.splitlines()] == served(mixtures, "staged")

    @pytest.mark.parametrize(
        ("accept", "answered"),
        [
            ("application/ld+json", "application/ld+json"),
            ('application/ld+json; profile="http://mlcommons.org/croissant/1.1"', "application/ld+json"),
            ("application/json", "application/json"),
            ("*/*", "application/ld+json"),
            ("application/x-tar", "application/x-tar"),
        ],
    )
    def test_croissant_comes_as_it_is_asked_for(self, client: TestClient, accept: str, answered: str) -> None:
        answer = client.get(
            "/v1/mixtures/staged/export", params={"format": "croissant"}, headers={"accept": accept}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(answered)
