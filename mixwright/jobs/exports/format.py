"""What an export format is, and what its writer gets.

A writer sees the mixture as **data sets**: one for each stage and component, with exactly the rows that the
stage serves of that component, in their order, repeats included. One pass over all data sets of a stage is the
stage, so the mixture's own repeats and permutations are kept, whatever the trainer does between data sets.

Two weights go with each data set. ``token_share`` is for trainers that draw rows of a fixed number of tokens;
``document_odds`` is for those that draw whole documents: p_i = (w_i / t_i) / sum_j (w_j / t_j) with the token
shares w and the mean tokens a document t. Token shares as odds of documents would give long documents too much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from mixwright.errors import ConfigError
from mixwright.jobs.exports.files import json_text, write_json_lines, write_parquet, yaml_text
from mixwright.jobs.exports.names import safe_names
from mixwright.progress import Progress
from mixwright.schemas.manifests import MixtureManifest
from mixwright.schemas.reads import TokenizerName
from mixwright.selectors.streams import MixtureStream, Tokenization
from mixwright.store import Store

NAME_PATTERN = r"^[^\x00-\x1f\x7f]+$"
ROOT_PATTERN = r"^[^\x00-\x1f\x7f\"'`]+$"
"""A root goes into commands and programs that a person copies: it has no quotation marks."""


@dataclass(frozen=True)
class ExportOptions:
    """What a user may set; None is the format's own default.

    ``tokenizer``, ``bos``, ``eos`` and ``sequence_length`` are for formats of tokens; the default tokenizer is the
    mixture's. ``root`` is the path under which the trainer will see the folder; default: the folder itself.
    Raises ConfigError for a token id or a length that is out of range.
    """

    tokenizer: TokenizerName | None = None
    bos: int | None = None
    eos: int | None = None
    sequence_length: int | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("bos", 0), ("eos", 0), ("sequence_length", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < 2**31:
                raise ConfigError(f"{name} {value} is out of range: give a number from {least} to 2147483647")
        if self.tokenizer is not None and not re.fullmatch(NAME_PATTERN[1:-1], self.tokenizer):
            raise ConfigError(f"tokenizer {self.tokenizer!r} is empty or has control characters: correct it")
        if self.root is not None and not re.fullmatch(ROOT_PATTERN[1:-1], self.root):
            raise ConfigError(
                f"root {self.root!r} is empty or has quotation marks or control characters: give another path"
            )

    def given(self) -> dict[str, str | int]:
        """The options that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class DataSet:
    """The rows that one stage serves of one component.

    ``name`` is unique in the export and safe as a file name, in YAML and on a command line: letters, digits and
    ``-_.``, never one that reads as a number. ``n_tokens`` counts text by the mixture's tokenizer, without tags.
    """

    name: str
    stage: str
    component: str
    tagged: bool
    n_rows: int
    n_tokens: int
    token_share: float
    document_odds: float
    read: Callable[[Tokenization | None], Iterator[pa.Table]] = field(repr=False, compare=False)

    def tables(self, tokenization: Tokenization | None = None) -> Iterator[pa.Table]:
        """The rows in served order (``ROW_SCHEMA``, and ``TOKEN_FIELDS`` if tokenized), some at a time.

        ``position`` is the row's place in the whole mixture.
        """
        return self.read(tokenization)


@dataclass(frozen=True)
class Export:
    """One export at work: the mixture, the options, and the folder to write into.

    ``folder`` becomes the export when all is written; ``root`` is where the trainer will see it. The ``write_…``
    methods take a path relative to the folder and make its parents. ``service`` is the URL of the service that the
    mixture is asked of, where only a format's ``document`` is wanted: it is then written without rows beside it,
    and points into the service.
    """

    stream: MixtureStream
    options: ExportOptions
    folder: Path
    root: str
    progress: Progress
    store: Store
    warnings: list[str] = field(default_factory=list)
    row_counts: dict[str, int] = field(default_factory=dict)
    service: str | None = None

    @property
    def manifest(self) -> MixtureManifest:
        """The mixture's manifest."""
        return self.stream.manifest

    @cached_property
    def tokenization(self) -> Tokenization:
        """How a format of tokens tokenizes: by the option, else by the tokenizer that counted the mixture.

        Raises ConfigError if tags stand on every training window and no sequence length is given.
        """
        options, plan = self.options, self.manifest.tags
        if plan is not None and plan.scope == "window" and options.sequence_length is None:
            raise ConfigError(
                f"the tags of {self.manifest.ref} stand on every training window: give sequence_length, its tokens"
            )
        return Tokenization(
            options.tokenizer or self.manifest.tokenizer, options.bos, options.eos, options.sequence_length
        )

    def warn(self, message: str) -> None:
        """Say what the export does not express; the same line counts once."""
        if message not in self.warnings:
            self.warnings.append(message)

    def data_sets(self) -> list[DataSet]:
        """One data set for each stage and component that serves rows, in that order."""
        return self._data_sets

    def stages(self) -> list[list[DataSet]]:
        """The data sets of each stage, in order."""
        names = [stage.name for stage in self.manifest.stages]
        return [[each for each in self._data_sets if each.stage == name] for name in names]

    def path(self, relative: str) -> Path:
        """A path inside the folder, with its parents made."""
        path = self.folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def seen(self, relative: str) -> str:
        """The path as the trainer will see it."""
        return f"{self.root.rstrip('/')}/{relative}" if self.root != "/" else f"/{relative}"

    def count_rows(self, relative: str, n_rows: int) -> None:
        """Say how many rows a file has, for the list of files."""
        self.row_counts[relative] = n_rows

    def write_text(self, relative: str, text: str) -> None:
        """UTF-8 text; a line break at the end is added."""
        self.path(relative).write_bytes((text.rstrip("\n") + "\n").encode())

    def write_json(self, relative: str, value: Any) -> None:
        """JSON, indented."""
        self.write_text(relative, json_text(value))

    def write_yaml(self, relative: str, value: Any, comment: str = "") -> None:
        """YAML, with the keys in their order, and a comment before it."""
        lines = "".join(f"# {line}\n" for line in comment.splitlines())
        self.write_text(relative, lines + yaml_text(value))

    def write_json_lines(self, relative: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """JSON lines, compressed as the name ends (.gz, .zst); returns the number of rows."""
        n_rows = write_json_lines(self.path(relative), rows)
        self.count_rows(relative, n_rows)
        return n_rows

    def write_parquet(self, relative: str, tables: Iterable[pa.Table], schema: pa.Schema | None = None) -> int:
        """A Parquet file with zstd; returns the number of rows. ``schema`` is needed where there may be none."""
        n_rows = write_parquet(self.path(relative), tables, schema)
        self.count_rows(relative, n_rows)
        return n_rows

    @cached_property
    def _data_sets(self) -> list[DataSet]:
        stages, components = self.manifest.stages, self.manifest.components
        served = [
            (number, part) for number, stage in enumerate(stages) for part, n in enumerate(stage.counts) if n
        ]
        wanted = [
            components[part].name if len(stages) == 1 else f"{stages[number].name}-{components[part].name}"
            for number, part in served
        ]
        names = dict(zip(served, safe_names(wanted), strict=True))
        tokens = {each: self.stream.component_tokens(*each) for each in served}
        return [self._data_set(names[each], *each, tokens) for each in served]

    def _data_set(self, name: str, number: int, part: int, tokens: dict[tuple[int, int], int]) -> DataSet:
        stage = self.manifest.stages[number]
        in_stage = sum(n for (other, _), n in tokens.items() if other == number)
        n_rows, n_tokens = stage.counts[part], tokens[number, part]
        # With t_i = n_tokens_i / n_rows_i the odds (w_i / t_i) / sum(w_j / t_j) are the shares of the rows.
        odds = n_rows / sum(stage.counts)
        return DataSet(
            name=name,
            stage=stage.name,
            component=self.manifest.components[part].name,
            tagged=stage.tagged and self.manifest.tags is not None,
            n_rows=n_rows,
            n_tokens=n_tokens,
            token_share=n_tokens / in_stage if in_stage else odds,
            document_odds=odds,
            read=lambda tokenization: self._read(number, part, tokenization),
        )

    def _read(self, number: int, part: int, tokenization: Tokenization | None) -> Iterator[pa.Table]:
        for table in self.stream.component_rows(number, part, tokenization):
            yield table
            self.progress.advance(table.num_rows)


@dataclass(frozen=True)
class ExportFormat:
    """A form that a trainer reads.

    ``document`` is the file's name where the whole export is one JSON document, of type ``media_type``.
    ``snippet`` shows how the trainer loads the folder ``{root}``; ``{stage}`` in it stands for what the names of
    the files of the first stage end in, nothing for the only one. ``masks`` and ``stages`` say what it expresses:
    where a mixture has what the format has not, ``export_mixture`` warns.
    """

    name: str
    title: str
    trainer: str
    tokenized: bool
    document: str | None
    write: Callable[[Export], None]
    snippet: str
    masks: bool
    stages: bool
    media_type: str = "application/json"
