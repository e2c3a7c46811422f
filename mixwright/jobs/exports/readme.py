"""The README.md of an export: what it holds, how it is loaded, and what it leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixwright.jobs.exports.format import DataSet, Export


def write_readme(export: Export, title: str, *parts: str, name: str = "README.md") -> None:
    """A page of a title, these parts, and the warnings so far: write it last."""
    manifest = export.manifest
    pages = [
        f"# {manifest.ref} for {title}",
        f"Mixture {manifest.ref}, fingerprint `{manifest.fingerprint}`, seed {manifest.seed}, "
        f"tokenizer of its counts {manifest.tokenizer}.",
        *parts,
    ]
    if export.warnings:
        pages.append("## What this export leaves out\n\n" + "\n".join(f"- {line}" for line in export.warnings))
    export.write_text(name, "\n\n".join(page.strip("\n") for page in pages if page))


def data_set_table(data_sets: Sequence[DataSet], tokens: Mapping[str, int] | None = None) -> str:
    """The data sets with their sizes and weights; ``tokens`` are those written, by name."""
    heads = ["data set", "stage", "component", "rows", "text tokens", "token share", "document odds"]
    lines = [
        [
            each.name,
            each.stage,
            each.component,
            f"{each.n_rows:,}",
            f"{each.n_tokens:,}",
            f"{each.token_share:.6f}",
            f"{each.document_odds:.6f}",
        ]
        for each in data_sets
    ]
    if tokens is not None:
        heads.append("tokens written")
        for line, each in zip(lines, data_sets, strict=True):
            line.append(f"{tokens[each.name]:,}")
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *lines])


def code(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text.strip()}\n```"
