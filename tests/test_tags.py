"""Tags, schedules and loss masks against the published cases."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import document_table

from mixwright.errors import ConfigError
from mixwright.schemas.mixtures import TagPlan
from mixwright.selectors.domain_tags import DomainTags, Preset
from mixwright.selectors.tags import (
    dropped_out,
    field_values,
    paragraphs,
    render,
    tag_rows,
    template_fields,
    tokenize_tagged,
)
from mixwright.tokenization import load_tokenizer

DOCUMENTS = pl.DataFrame(
    pl.from_arrow(
        document_table(
            ["one", "two", "three"],
            source="wiki",
            domains=["en.wikipedia.org", None, "news.bbc.co.uk"],
            urls=["https://en.wikipedia.org/wiki/A", None, "https://news.bbc.co.uk/1"],
            metadata=[json.dumps(m) for m in ({"topic": "a\n\nb", "n": 5}, {"topic": " "}, {"x": None})],
        )
    )
).lazy()


def tags_of(plan: TagPlan) -> list[str | None]:
    return render(plan, field_values(DOCUMENTS, template_fields(plan.template)), None).to_list()


@pytest.mark.parametrize(
    ("preset", "tag"),
    [
        ("meco", "URL: en.wikipedia.org\n\n"),
        ("physics", "en.wikipedia.org "),
        ("boc", "<boc>https://en.wikipedia.org/wiki/A<eoc>"),
        ("ctrl", "<|wiki|>"),
    ],
)
def test_presets_render_the_published_forms(preset: Preset, tag: str) -> None:
    assert tags_of(DomainTags(preset=preset).plan())[0] == tag


def test_a_given_field_wins_over_its_preset() -> None:
    plan = DomainTags(preset="boc", dropout=0.25, template="[{domain}] ", mask=False).plan()
    assert (plan.template, plan.dropout, plan.mask, plan.schedule) == ("[{domain}] ", 0.25, False, "dropout")
    # The empty form and the special tokens were those of the preset's own template.
    assert (plan.empty, plan.special_tokens) == ("", [])


@pytest.mark.parametrize(
    ("template", "tags"),
    [
        ("{registered_domain}|", ["wikipedia.org|", None, "bbc.co.uk|"]),
        ("{suffix}|", ["org|", None, "co.uk|"]),
        ("{topic}|", ["a b|", None, None]),
        ("{n}|", ["5|", None, None]),
        ("{{{source}}} ", ["{wiki} ", "{wiki} ", "{wiki} "]),
        ("{source}/{domain} ", ["wiki/en.wikipedia.org ", None, "wiki/news.bbc.co.uk "]),
    ],
)
def test_templates(template: str, tags: list[str | None]) -> None:
    assert tags_of(TagPlan(template=template)) == tags


def test_hashed_domains_keep_the_groups_and_hide_the_names() -> None:
    first, missing, second = tags_of(TagPlan(template="{domain_hash}"))
    assert missing is None
    assert first != second
    assert "wiki" not in str(first)
    assert len(str(first)) == 12


def test_missing_values_and_rare_values() -> None:
    plan = TagPlan(template="URL: {domain}\n\n", missing="unknown")
    assert tags_of(plan)[1] == "URL: unknown\n\n"
    kept = pl.DataFrame({"field": ["domain"], "value": ["en.wikipedia.org"]})
    values = field_values(DOCUMENTS, ["domain"])
    assert render(plan, values, kept).to_list()[2] == "URL: unknown\n\n"
    assert render(TagPlan(template="{domain}"), values, kept).to_list() == ["en.wikipedia.org", None, None]


def test_dropout_is_a_fixed_function_of_document_pass_and_seed() -> None:
    ids = np.random.default_rng(0).integers(0, 2**63, 40_000).astype(np.uint64)
    dropped = dropped_out(ids, 0.1, seed=3, epoch=0)
    assert dropped.mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 40_000))
    order = np.random.default_rng(1).permutation(len(ids))
    assert (dropped_out(ids[order], 0.1, 3, 0) == dropped[order]).all()
    # Nested in the rate, independent between passes and seeds.
    assert not (dropped & ~dropped_out(ids, 0.2, 3, 0)).any()
    for other in (dropped_out(ids, 0.1, 3, 1), dropped_out(ids, 0.1, 4, 0)):
        assert (dropped & other).mean() == pytest.approx(0.01, abs=0.003)


def test_a_dropped_tag_becomes_the_empty_form_and_only_a_tag_can_be_dropped() -> None:
    plan = TagPlan(template="<boc>{url}<eoc>", empty="<boc><eoc>", schedule="dropout", dropout=0.999999)
    tags = tag_rows(
        plan,
        field_values(DOCUMENTS, ["url"]),
        None,
        np.arange(3, dtype=np.uint64),
        np.zeros(3, dtype=np.int64),
        seed=0,
    )
    assert tags.to_list() == ["<boc><eoc>", "", "<boc><eoc>"]


# Tokens and masks

BYTES = load_tokenizer("bytes")
MECO = DomainTags().plan()


def test_the_meco_mask() -> None:
    tag, text = "URL: en.wikipedia.org\n\n", "Physics."
    ids, masks = tokenize_tagged(MECO, [tag, ""], [text, text], BYTES, bos=256, eos=257)
    assert ids[0] == [256, *tag.encode(), *text.encode(), 257]
    # mask[: 1 + len(tag)] = 0: BOS and tag carry no loss, document and EOS do.
    assert masks[0] == [False] * (1 + len(tag)) + [True] * (len(text) + 1)
    assert ids[1] == [256, *text.encode(), 257]
    assert masks[1] == [True] * (len(text) + 2)


def test_without_a_mask_every_token_counts() -> None:
    plan = DomainTags(preset="physics", scope="document").plan()
    _, masks = tokenize_tagged(plan, ["wiki "], ["text"], BYTES)
    assert masks == [[True] * 9]


def test_paragraph_scope_repeats_the_tag() -> None:
    plan = DomainTags(preset="physics", mask=True).plan()
    text = "first\nline\n\nsecond\n \n\nthird\n\n"
    ids, masks = tokenize_tagged(plan, ["a "], [text], BYTES)
    assert bytes(ids[0]).decode() == "a first\nline\n\na second\n \n\na third\n\n"
    unmasked = bytes(i for i, counts in zip(ids[0], masks[0], strict=True) if counts)
    assert unmasked.decode() == text


def test_window_scope_repeats_the_code_on_every_window() -> None:
    plan = TagPlan(template="{source}", scope="window")
    ids, masks = tokenize_tagged(plan, ["#"], ["abcdefgh"], BYTES, window=3)
    assert bytes(ids[0]) == b"#abc#def#gh"
    assert masks[0] == [c != "#" for c in "#abc#def#gh"]
    with pytest.raises(ConfigError, match="how many tokens a window has"):
        tokenize_tagged(plan, ["#"], ["abc"], BYTES)


@given(st.text(max_size=200))
def test_paragraphs_join_to_the_text(text: str) -> None:
    pieces = paragraphs(text)
    assert "".join(pieces) == text
    assert all(pieces) or text == ""


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=30))
def test_tag_and_text_are_tokenized_apart(text: str, tag: str) -> None:
    tokenizer = load_tokenizer("all-minilm-l6-v2")
    ids, masks = tokenize_tagged(MECO, [tag], [text], tokenizer)
    kept = [i for i, counts in zip(ids[0], masks[0], strict=True) if counts]
    assert kept == tokenizer.encode([text])[0]
    assert ids[0] == tokenizer.encode([tag])[0] + kept


def test_special_tokens_are_one_token_in_a_tag_and_text_in_a_text() -> None:
    tokenizer = load_tokenizer("all-minilm-l6-v2")
    plan = DomainTags(preset="boc").plan()
    ids, _ = tokenize_tagged(plan, ["<boc>a.org<eoc>"], ["no <boc> here [SEP]"], tokenizer)
    host = tokenizer.encode(["a.org"])[0]
    text = tokenizer.encode(["no <boc> here [SEP]"])[0]
    vocabulary = 30522
    assert ids[0] == [vocabulary, *host, vocabulary + 1, *text]
    assert max(text) < vocabulary
    # 102 is BERT's [SEP]: a document that spells it does not get it.
    assert 102 not in text


def test_the_bytes_tokenizer_refuses_special_tokens() -> None:
    with pytest.raises(ConfigError, match="bytes tokenizer has no token"):
        tokenize_tagged(DomainTags(preset="boc").plan(), ["<boc>a<eoc>"], ["text"], BYTES)
