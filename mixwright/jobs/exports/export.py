"""Export a mixture: the format's files, all or nothing, with ``export.json`` that lists them."""

from __future__ import annotations

import os
from pathlib import Path

from mixwright.errors import ConfigError
from mixwright.fingerprint import file_sha256
from mixwright.jobs.exports.format import Export, ExportFormat, ExportOptions
from mixwright.jobs.exports.names import safe_names
from mixwright.jobs.exports.registry import EXPORT_FORMATS
from mixwright.jobs.materialize import new_folder
from mixwright.progress import Progress
from mixwright.schemas.exports import ExportResult
from mixwright.schemas.manifests import FileEntry, MixtureManifest
from mixwright.selectors.streams import MixtureStream
from mixwright.store import Store

EXPORT_NAME = "export.json"


def export_format(name: str) -> ExportFormat:
    """The format of that name; raises ConfigError that lists them."""
    if name not in EXPORT_FORMATS:
        raise ConfigError(f"there is no export format {name!r}: use one of {', '.join(EXPORT_FORMATS)}")
    return EXPORT_FORMATS[name]


def export_mixture(
    store: Store,
    stream: MixtureStream,
    format_name: str,
    options: ExportOptions,
    out: Path,
    progress: Progress,
    service: str | None = None,
) -> ExportResult:
    """Write a mixture in a trainer's form into a new folder, all or nothing.

    ``service`` is the URL of the service that only wants the format's document: no rows are written beside it.
    Raises ConfigError for an unknown format and for options that the format cannot do with, ConflictError if
    ``out`` has something in it already.
    """
    chosen = export_format(format_name)
    out = out.resolve()
    manifest = stream.manifest
    with new_folder(out) as folder:
        export = Export(stream, options, folder, options.root or str(out), progress, store, service=service)
        progress.start(f"export {manifest.ref} as {chosen.name}", total=len(stream), unit="rows")
        for warning in standard_warnings(chosen, manifest):
            export.warn(warning)
        chosen.write(export)
        result = ExportResult(
            format=chosen.name,
            mixture=manifest.ref,
            fingerprint=manifest.fingerprint,
            options=options.given(),
            warnings=export.warnings,
            files=_entries(export),
        )
        (folder / EXPORT_NAME).write_text(result.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return result


def snippet(chosen: ExportFormat, root: str = "{root}", manifest: MixtureManifest | None = None) -> str:
    """How the trainer loads an export that it sees under ``root``; of a mixture with stages, the first one's."""
    names = safe_names([stage.name for stage in manifest.stages]) if manifest else []
    return chosen.snippet.replace("{stage}", f"-{names[0]}" if len(names) > 1 else "").replace("{root}", root)


def standard_warnings(chosen: ExportFormat, manifest: MixtureManifest) -> list[str]:
    """What any format with these abilities leaves out of this mixture."""
    found = []
    plan = manifest.tags
    tagged = plan is not None and any(stage.tagged for stage in manifest.stages)
    if plan is not None and tagged and plan.mask and not chosen.masks:
        found.append(
            f"{chosen.trainer} has no loss mask here: the mixture asks for no loss on its tags, and this export "
            "trains on them"
        )
    if plan is not None and tagged and plan.special_tokens and not chosen.tokenized and not chosen.document:
        found.append(
            f"tags hold the special tokens {' '.join(plan.special_tokens)}: add them to the trainer's tokenizer, "
            "or they are read as several tokens"
        )
    if len(manifest.stages) > 1 and not chosen.stages:
        names = ", ".join(stage.name for stage in manifest.stages)
        found.append(
            f"{chosen.trainer} knows no stages: the mixture has {names}; train on the data sets of one after the "
            "other"
        )
    return found


def _entries(export: Export) -> list[FileEntry]:
    paths = sorted(path for path in export.folder.rglob("*") if path.is_file())
    return [_entry(path, path.relative_to(export.folder).as_posix(), export.row_counts) for path in paths]


def _entry(path: Path, relative: str, row_counts: dict[str, int]) -> FileEntry:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
    return FileEntry(
        path=relative,
        n_bytes=path.stat().st_size,
        sha256=file_sha256(path),
        n_rows=row_counts.get(relative),
    )
