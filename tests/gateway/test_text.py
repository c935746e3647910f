from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.detokenizer import detokenizer_for
from gateway.stop_strings import StopStrings
from gateway.vocabulary import Vocabulary

KINDS = ["byte-level", "llama", "gemma", "metaspace"]


@pytest.fixture(scope="module")
def vocabularies(hf_tokenizers):
    return {kind: Vocabulary(hf) for kind, hf in hf_tokenizers.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_deltas_are_the_decoded_text(kind, data, vocabularies):
    """Concatenated deltas equal decoding all ids at once, for random ids of every decoder."""
    vocabulary = vocabularies[kind]
    size = vocabulary.tokenizer.get_vocab_size()
    # Ids beyond the vocabulary too: models have padded embeddings.
    ids = data.draw(st.lists(st.integers(0, size + 1), max_size=40))
    detokenizer = detokenizer_for(vocabulary)
    text = "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()
    assert text == vocabulary.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=20))
def test_no_half_characters(kind, text, vocabularies):
    """A character spread over several tokens comes whole; what is shown is always a prefix."""
    vocabulary = vocabularies[kind]
    pieces = [f"<0x{byte:02X}>" for byte in text.encode()]
    if kind == "byte-level":
        back = {vocabulary.token_bytes(token): token for token in range(3, 259)}
        ids = [back[bytes([byte])] for byte in text.encode()]
    else:
        ids = [vocabulary.tokenizer.token_to_id(piece) for piece in pieces]
    detokenizer = detokenizer_for(vocabulary)
    expected = vocabulary.tokenizer.decode(ids)
    assert expected in {text, text.removeprefix(" ")}
    seen = ""
    for token in ids:
        seen += detokenizer.push(token)
        # Which is the text but for a leading space that some decoders drop.
        assert expected.startswith(seen + detokenizer.pending)
    assert seen + detokenizer.flush() == expected


def test_ascii_is_not_delayed(vocabularies, ids):
    """Plain text comes with its own token, not one later."""
    detokenizer = detokenizer_for(vocabularies["byte-level"])
    for token in ids("Hello, world"):
        assert detokenizer.push(token) == vocabularies["byte-level"].tokenizer.decode([token])


@pytest.mark.parametrize("kind", KINDS)
def test_cost_does_not_grow(kind, vocabularies):
    """50,000 tokens, half of them bytes that are no characters, take linear time."""
    vocabulary = vocabularies[kind]
    ids = [token % vocabulary.tokenizer.get_vocab_size() for token in range(50_000)]
    ids[25_000:] = [0x80 + 3] * 25_000 if kind in {"llama", "gemma"} else ids[25_000:]
    detokenizer = detokenizer_for(vocabulary)
    began = time.process_time()
    for token in ids:
        detokenizer.push(token)
    detokenizer.flush()
    assert time.process_time() - began < 5


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Character by character: at the first end of a stop string, cut where the longest begins."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def run_chunks(chunks: list[str], stops: list[str]) -> tuple[str, bool]:
    finder = StopStrings(stops)
    shown = ""
    for chunk in chunks:
        scan = finder.feed(chunk)
        shown += scan.text
        if scan.matched:
            return shown, True
        assert not any((shown + scan.held).endswith(stop) for stop in stops)
    return shown + finder.flush(), False


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="ab\n", max_size=9),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_under_every_chunking(text, stops):
    """Every way to cut a text gives what reading all of it gives."""
    expected = reference(text, stops)
    for cuts in range(1 << max(0, len(text) - 1)):
        chunks, begin = [], 0
        for place in range(1, len(text)):
            if cuts >> (place - 1) & 1:
                chunks.append(text[begin:place])
                begin = place
        chunks.append(text[begin:])
        assert run_chunks(chunks, stops) == expected


def test_only_a_possible_prefix_is_held():
    """Text that cannot begin a stop string is shown at once."""
    finder = StopStrings(["END", "\n\n"])
    assert finder.feed("a lot of text E").text == "a lot of text "
    assert finder.feed("x").text == "Ex"
    assert finder.feed("y\n").held == "\n"
    assert finder.feed("z").text == "\nz"
