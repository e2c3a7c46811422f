"""The byte n-gram model against a direct implementation with dictionaries, and against what is known of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixwright.errors import ConfigError, DataError
from mixwright.language_models.ngram import MAX_ORDER, NgramModel

BOUNDARY = 0xFF

TRAINING = [
    "the cat sat on the mat",
    "the dog sat on the log; the log was the dog's",
    "naïve café, 北京 and \U0001f600\U0001f600",
    "",
    "aaaaaaaaab",
]


class Oracle:
    """Interpolated absolute discounting by the formula, one byte at a time."""

    def __init__(self, texts: Sequence[str], order: int) -> None:
        self.order = order
        self.counts = [defaultdict(Counter) for _ in range(order)]
        for text in texts:
            data = self.padded(text)
            for place in range(order, len(data)):
                for n in range(order):
                    self.counts[n][data[place - n : place]][data[place]] += 1
        self.discounts = []
        for table in self.counts:
            found = Counter(count for following in table.values() for count in following.values())
            self.discounts.append(found[1] / (found[1] + 2 * found[2]) if found[1] else 0.5)

    def padded(self, text: str) -> bytes:
        return bytes([BOUNDARY]) * self.order + text.encode("utf-8", "surrogatepass")

    def probability(self, history: bytes, byte: int) -> float:
        """Of a byte after a history of order - 1 bytes."""
        found = 1 / 256
        for n in range(self.order):
            following = self.counts[n].get(history[len(history) - n :])
            if following:
                total = sum(following.values())
                direct = max(following[byte] - self.discounts[n], 0)
                found = (direct + self.discounts[n] * len(following) * found) / total
        return found

    def probabilities(self, texts: Sequence[str]) -> list[float]:
        padded = [self.padded(text) for text in texts]
        return [
            self.probability(data[place - self.order + 1 : place], data[place])
            for data in padded
            for place in range(self.order, len(data))
        ]


ASKED = ["the cat", "was it the log?", "café 北", "", "zzz", "\x00\x7f", "aaab", "\udce9 lone"]


@pytest.mark.parametrize("order", range(1, MAX_ORDER + 1))
def test_it_is_interpolated_absolute_discounting(order: int) -> None:
    model = NgramModel.train(TRAINING, order)
    found = model.probabilities(ASKED)
    expected = Oracle(TRAINING, order).probabilities(ASKED)
    assert len(found) == sum(len(text.encode("utf-8", "surrogatepass")) for text in ASKED)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    bits = -sum(math.log2(each) for each in expected) / len(expected)
    assert model.bits_per_byte(ASKED) == pytest.approx(bits, rel=1e-12)


texts = st.lists(st.text(alphabet="abé\x00", max_size=12), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(training=texts, asked=texts, order=st.integers(1, MAX_ORDER))
def test_so_it_is_for_any_texts(training: list[str], asked: list[str], order: int) -> None:
    if not "".join(training):
        training = [*training, "a"]
    found = NgramModel.train(training, order).probabilities(asked)
    np.testing.assert_allclose(found, Oracle(training, order).probabilities(asked), rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 6])
def test_what_may_follow_sums_to_one(order: int) -> None:
    oracle, model = Oracle(TRAINING, order), NgramModel.train(TRAINING, order)
    for history in ("", "t", "the ", "qqqq", "the dog sat on the "):
        data = oracle.padded(history)
        all_bytes = [oracle.probability(data[len(data) - order + 1 :], byte) for byte in range(256)]
        assert sum(all_bytes) == pytest.approx(1)
        assert min(all_bytes) > 0
        # Of those that can stand alone in a text, the model itself.
        ascii_ = [model.probabilities([history + chr(byte)])[-1] for byte in range(128)]
        np.testing.assert_allclose(ascii_, all_bytes[:128], rtol=1e-12)


def test_an_unknown_history_is_that_of_a_shorter_one() -> None:
    long, short = NgramModel.train(TRAINING, 5), NgramModel.train(TRAINING, 2)
    # No text has "q ": what follows is known from the space alone.
    assert long.probabilities(["qqq t"])[-1] == short.probabilities(["qqq t"])[-1]
    assert long.probabilities(["the log"])[-1] != short.probabilities(["the log"])[-1]
    unknown = NgramModel.train(["xy"], 5).probabilities(["qqqqq"])[-1]
    assert unknown == pytest.approx(NgramModel.train(["xy"], 1).probabilities(["q"])[-1])


def test_texts_do_not_run_into_each_other() -> None:
    one = NgramModel.train(["ab", "cd"], 3)
    np.testing.assert_array_equal(
        one.probabilities(["ab", "cd"]), np.concatenate([one.probabilities(["ab"]), one.probabilities(["cd"])])
    )
    other = NgramModel.train(["cd", "ab"], 3)
    np.testing.assert_array_equal(one.probabilities(["abcd"]), other.probabilities(["abcd"]))


def test_more_of_the_same_language_costs_fewer_bits() -> None:
    english = ["the cat sat on the mat and the dog on the log"] * 3
    digits = ["31415926535897932384626433832795028841971693993751"]
    asked = ["the dog sat on the mat"]
    near, far = (NgramModel.train(each, 4).bits_per_byte(asked) for each in (english, digits))
    both = NgramModel.train([*english, *digits], 4).bits_per_byte(asked)
    assert max(near, both) < far / 5


@pytest.mark.parametrize("order", [0, -1, MAX_ORDER + 1])
def test_orders_out_of_range_are_refused(order: int) -> None:
    with pytest.raises(ConfigError, match="give 1 to 8"):
        NgramModel.train(["text"], order)


def test_no_text_is_refused() -> None:
    for training in ([], ["", ""]):
        with pytest.raises(DataError, match="of no text"):
            NgramModel.train(training, 3)
    model = NgramModel.train(["text"], 3)
    assert model.probabilities([]).shape == (0,)
    with pytest.raises(DataError, match="of no text"):
        model.bits_per_byte(["", ""])
