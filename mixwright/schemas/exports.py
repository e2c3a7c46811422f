"""Exports: a mixture in the form that a trainer reads."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mixwright.schemas.manifests import FileEntry


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ExportResult(_Model):
    """What an export wrote; in the export's folder it is ``export.json``."""

    format: str
    mixture: str = Field(description="ref of the mixture, name@version")
    fingerprint: str = Field(description="fingerprint of the mixture")
    options: dict[str, str | int] = Field(default={}, description="the settings that were given")
    warnings: list[str] = Field(default=[], description="what the format does not express of this mixture")
    files: list[FileEntry] = Field(description="all files but export.json, by path")


class ExportedFile(FileEntry):
    """One file of an export."""

    text: str | None = Field(default=None, description="content of a small text file, such as a configuration")


class ExportListing(ExportResult):
    """An export as JSON: what it holds, and how the trainer loads it."""

    files: list[ExportedFile] = Field(description="all files but export.json, by path")  # type: ignore[assignment]
    snippet: str = Field(description="how the trainer loads it")


class ExportFormatInfo(_Model):
    """A form that mixtures can be exported in, and what it expresses of them."""

    name: str
    title: str
    trainer: str = Field(description="the trainer or reader that it is for")
    tokenized: bool = Field(description="always tokens: what a tokenizer and an end token are for")
    document: str | None = Field(description="file name, where the whole export is one JSON document")
    media_type: str = Field(description="of that document")
    masks: bool = Field(description="says which tokens count in the loss")
    stages: bool = Field(description="says which stage follows which")
    snippet: str = Field(description="how the trainer loads it; {root} stands for its folder")
