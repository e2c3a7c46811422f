"""Instruction data: read, cut to a length, tokenized, and split by ability."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixwright.errors import DataError
from mixwright.language_models.prompts import tokenize_pairs
from mixwright.schemas.documents import ID_LENGTH
from mixwright.templates import fill_template

TEXT_TEMPLATE = "### Instruction:\n{instruction}\n{input}\n\n### Response:\n{output}"
"""What is trained on is the text of the corpus, so that a document's ``n_tokens`` are its trained tokens."""

PROMPT_TEMPLATE = "{instruction}\n{input}"
_FIELDS = ("instruction", "input", "output", "ability")
_SHINGLE_WORDS = 3
_COMMON = 20
_NEAR_DUPLICATE = 0.6


@dataclass(frozen=True)
class Sample:
    """An instruction with its response. ``ids`` are the tokens of both, the first ``n_prompt`` the prompt's.

    ``id`` is the id of the document that ``mixwright ingest`` makes of ``fields``.
    """

    id: str
    ability: str
    fields: dict[str, str]
    ids: tuple[int, ...]
    n_prompt: int

    @property
    def n_tokens(self) -> int:
        """Trained tokens: prompt and response."""
        return len(self.ids)

    @property
    def n_response(self) -> int:
        """Tokens that count in the loss."""
        return len(self.ids) - self.n_prompt


@dataclass(frozen=True)
class Split:
    """Samples to select from, to choose learning rates by, and to report on."""

    pool: list[Sample]
    validation: list[Sample]
    test: list[Sample]


def read_samples(path: Path, tokenizer: Any, max_tokens: int) -> list[Sample]:
    """The file's samples, each text once, of about ``max_tokens`` tokens at most.

    Long responses are cut; a sample whose prompt fills half of the room is left out. Raises DataError for a line
    without instruction, output or ability.
    """
    rows = {text_id(fields): fields for fields in _cut(_read_rows(path), tokenizer, max_tokens)}
    prompts = [fill_template(PROMPT_TEMPLATE, fields) or "" for fields in rows.values()]
    responses = [fields["output"] for fields in rows.values()]
    pairs = tokenize_pairs(tokenizer, prompts, responses, "plain", None)
    return [
        Sample(identifier, fields["ability"], fields, tuple(ids), int(n_prompt))
        for (identifier, fields), ids, n_prompt in zip(rows.items(), pairs.ids, pairs.n_prompt, strict=True)
    ]


def text_id(fields: dict[str, str]) -> str:
    """The id of the document with these fields."""
    return _digest(fill_template(TEXT_TEMPLATE, fields) or "")[:ID_LENGTH]


def split(samples: Sequence[Sample], test: int, validation: int, pool: int) -> Split:
    """Per ability, in the order of the ids: ``test``, then ``validation``, then at most ``pool`` samples.

    What nearly repeats a held-out sample leaves the pool. Raises DataError for an ability too small for this.
    """
    parts = Split([], [], [])
    by_ability: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda each: each.id):
        by_ability[sample.ability].append(sample)
    for ability, members in sorted(by_ability.items()):
        if len(members) <= test + validation:
            raise DataError(
                f"ability {ability!r} has {len(members)} samples, and {test + validation} are to be held out: "
                "add to it or hold out fewer"
            )
        parts.test.extend(members[:test])
        parts.validation.extend(members[test : test + validation])
        parts.pool.extend(members[test + validation :])
    taken: Counter[str] = Counter()
    kept = []
    for sample in without_near_duplicates(parts.pool, [*parts.test, *parts.validation]):
        taken[sample.ability] += 1
        if taken[sample.ability] <= pool:
            kept.append(sample)
    return Split(kept, parts.validation, parts.test)


def without_near_duplicates(pool: Sequence[Sample], held_out: Sequence[Sample]) -> list[Sample]:
    """The pool without the samples that share most of their word 3-grams with one held-out sample.

    3-grams of more than 20 samples are fixed wording and do not count.
    """
    shingles = {sample.id: _shingles(sample) for sample in [*pool, *held_out]}
    frequency = Counter(shingle for each in shingles.values() for shingle in each)
    rare = {identifier: [s for s in each if frequency[s] <= _COMMON] for identifier, each in shingles.items()}
    where: dict[str, list[str]] = defaultdict(list)
    for sample in held_out:
        for shingle in rare[sample.id]:
            where[shingle].append(sample.id)
    kept = []
    for sample in pool:
        shared = Counter(held for shingle in rare[sample.id] for held in where[shingle])
        if max(shared.values(), default=0) <= _NEAR_DUPLICATE * len(rare[sample.id]):
            kept.append(sample)
    return kept


def write_pool(samples: Iterable[Sample], path: Path) -> None:
    """The samples' fields as JSON lines, for ``mixwright ingest``."""
    path.write_text("".join(json.dumps(sample.fields) + "\n" for sample in samples), encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, str]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line)
            fields = {name: str(row.get(name) or "") for name in _FIELDS}
            if not all(fields[name].strip() for name in ("instruction", "output", "ability")):
                raise DataError(f"{path}:{number}: instruction, output or ability is missing: fill in all three")
            rows.append(fields)
    return rows


def _cut(rows: Sequence[dict[str, str]], tokenizer: Any, max_tokens: int) -> Iterable[dict[str, str]]:
    """The rows whose prompts leave room, with responses that fit into it."""
    for fields in rows:
        n_prompt = len(tokenizer.tokenize(fill_template(TEXT_TEMPLATE, {**fields, "output": ""}) or "")) + 1
        if n_prompt > max_tokens // 2:
            continue
        offsets = tokenizer(fields["output"], add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        room = max_tokens - n_prompt
        yield fields if len(offsets) <= room else {**fields, "output": fields["output"][: offsets[room - 1][1]]}


def _shingles(sample: Sample) -> set[str]:
    words = (fill_template(TEXT_TEMPLATE, sample.fields) or "").lower().split()
    last = max(1, len(words) - _SHINGLE_WORDS + 1)
    return {" ".join(words[start : start + _SHINGLE_WORDS]) for start in range(last)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
