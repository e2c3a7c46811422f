"""Commands to copy: how to read, search and export what a page shows."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from mixwright.jobs.exports.export import snippet, standard_warnings
from mixwright.jobs.exports.format import ExportFormat
from mixwright.jobs.exports.registry import EXPORT_FORMATS
from mixwright.schemas.manifests import CorpusManifest, MixtureManifest

_KEY = '-H "Authorization: Bearer $MIXWRIGHT_API_KEY" '


@dataclass(frozen=True)
class Here:
    """The service as the browser reached it, and whether it asks for keys."""

    base: str
    needs_key: bool = False

    @classmethod
    def of(cls, request: Request) -> Here:
        """The service that got the request."""
        security = getattr(request.app.state, "security", None)
        return cls(str(request.base_url).rstrip("/"), bool(security and security.required))

    def curl(self, path: str, options: str = "") -> str:
        """A GET as a shell command; the key, where one is needed, is in the environment as the client's is."""
        return f"curl {_KEY if self.needs_key else ''}{options}'{self.base}{path}'"

    def curl_post(self, path: str) -> str:
        """A POST of JSON as a shell command, up to the body in single quotes."""
        return f"{self.curl(path)} -H 'content-type: application/json' -d "


@dataclass(frozen=True)
class Snippet:
    """Something to copy."""

    title: str
    text: str


def shell_json(body: dict[str, Any]) -> str:
    """JSON in a shell's single quotes."""
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"'{text}'"


def ingest_command(here: Here) -> str:
    """How a first corpus is asked for over REST."""
    request = {"kind": "ingest", "request": {"name": "wiki", "paths": ["wiki.jsonl.gz"]}}
    return here.curl_post("/v1/jobs") + shell_json(request)


def search_command(here: Here, ref: str) -> str:
    """A search in a datastore over REST."""
    return here.curl_post(f"/v1/datastores/{ref}/search") + shell_json({"queries": ["your question"], "k": 3})


def rows_command(here: Here, plural: str, ref: str) -> str:
    """The first rows of a mixture or corpus over REST."""
    return here.curl(f"/v1/{plural}/{ref}/rows?{'count=5' if plural == 'mixtures' else 'length=10'}")


def reading_snippets(manifest: MixtureManifest, here: Here) -> list[Snippet]:
    """How a training script or a person reads the rows of a mixture."""
    ref, rows = manifest.ref, f"/v1/mixtures/{manifest.ref}/rows"
    first, rank = here.curl(f"{rows}?count=5"), here.curl(f"{rows}?rank=0&world_size=8")
    return [
        Snippet("curl", f"{first}\n# the first of eight ranks\n{rank}"),
        Snippet("Command line", f"mixwright mixture rows {ref} --count 5\nmixwright mixture show {ref}"),
        Snippet(
            "Python",
            "from mixwright import Client\n\n"
            f'with Client("{here.base}") as client:\n'
            f'    for row in client.rows("{ref}", count=5):\n'
            '        print(row["tag_text"] + row["text"])',
        ),
        Snippet(
            "PyTorch",
            "from torch.utils.data import DataLoader\n"
            "from mixwright.torch_dataset import MixtureDataset\n\n"
            "dataset = MixtureDataset(\n"
            f'    "{here.base}", "{ref}", block_rows=32, tokenizer="{manifest.tokenizer}"\n'
            ")\n"
            "loader = DataLoader(dataset, batch_size=32, num_workers=4, collate_fn=...)",
        ),
    ]


@dataclass(frozen=True)
class ExportHelp:
    """A format on the page of a mixture. ``caveats`` are what the format cannot say of this mixture."""

    name: str
    title: str
    caveats: tuple[str, ...]
    address: str
    address_text: str
    snippets: tuple[Snippet, ...]


def export_help(manifest: MixtureManifest, here: Here) -> list[ExportHelp]:
    """Every export format, with its commands for this mixture."""
    return [_export_help(manifest, here, each) for each in EXPORT_FORMATS.values()]


def _export_help(manifest: MixtureManifest, here: Here, form: ExportFormat) -> ExportHelp:
    path = f"/v1/mixtures/{manifest.ref}/export?format={form.name}"
    folder = f"{manifest.name}-{form.name}"
    if form.document:
        fetch = here.curl(path, f"-o {shlex.quote(form.document)} ")
    else:
        fetch = f"mkdir {folder}\n{here.curl(path, '-H accept:application/x-tar ')} | tar -x -C {folder}"
    snippets = [
        Snippet("Command line", f"mixwright mixture export {manifest.ref} --format {form.name} --out {folder}"),
        Snippet("curl", fetch),
        Snippet(form.trainer, snippet(form, folder, manifest)),
    ]
    caveats = standard_warnings(form, manifest)
    if form.tokenized:
        caveats.append(f"written as tokens of {manifest.tokenizer}: --tokenizer says which else")
    return ExportHelp(
        name=form.name,
        title=form.title,
        caveats=tuple(caveats),
        address=path,
        address_text=f"Look at {form.document}" if form.document else "Look at what it holds",
        snippets=tuple(each for each in snippets if each.text),
    )


def corpus_snippets(manifest: CorpusManifest, here: Here) -> list[Snippet]:
    """What one does next with a corpus."""
    half = max(manifest.n_tokens // 2, 1)
    return [
        Snippet("Read it", rows_command(here, "corpora", manifest.ref)),
        Snippet("Embed it", f"mixwright embed {manifest.ref}"),
        Snippet("Make a datastore of it", f"mixwright datastore build {manifest.ref} --name library"),
        Snippet("Select from it", f"mixwright select unimax --source {manifest.ref} --name blend --tokens {half}"),
    ]
