from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.continuation import Continuation
from gateway.detokenizer import detokenizer_for
from gateway.stop_strings import StopStrings
from gateway.vocabulary import Vocabulary
from slipstream.core.errors import Unavailable
from slipstream.wire.proto import types_pb2, verifier_pb2


@pytest.fixture(scope="module")
def vocabularies(hf_tokenizers):
    return {kind: Vocabulary(hf) for kind, hf in hf_tokenizers.items()}


def naive(decode, ids: list[int], stops: list[str]) -> tuple[str, int, str]:
    """Decodes everything again for each token; text, tokens used and reason."""
    for used in range(1, len(ids) + 1):
        text = decode(ids[:used])
        for end in range(1, len(text) + 1):
            starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
            if starts:
                return text[: min(starts)], used, "stop"
    return decode(ids), len(ids), "length"


def messages(ids: list[int], sizes: list[int]) -> list[verifier_pb2.GenerateResponse]:
    made, at = [], 0
    while at < len(ids):
        size = sizes[len(made) % len(sizes)]
        tokens = [types_pb2.Token(id=token) for token in ids[at : at + size]]
        made.append(verifier_pb2.GenerateResponse(tokens=tokens))
        at += size
    made[-1].finish_reason = types_pb2.FINISH_REASON_LENGTH
    return made


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma", "metaspace"])
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_against_decoding_everything_again(kind, data, vocabularies):
    """Text, token count and reason equal the naive reference's, for all ids, stops and chunks."""
    vocabulary = vocabularies[kind]
    # Letters and byte tokens often, so that stop strings match and characters are cut.
    often = ["a", "b", "▁a", "<0x61>", "<0x0A>", "<0xC3>", "<0xA9>", "Ċ", "Ã", "©"]
    known = [vocabulary.tokenizer.token_to_id(piece) for piece in often]
    tokens = st.one_of(
        st.sampled_from([token for token in known if token is not None]),
        st.integers(0, vocabulary.tokenizer.get_vocab_size() - 1),
    )
    ids = data.draw(st.lists(tokens, min_size=1, max_size=20))
    text = st.text(alphabet="ab \né", min_size=1, max_size=3)
    stops = data.draw(st.lists(text, max_size=3))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    expected = naive(vocabulary.tokenizer.decode, ids, stops)
    continuation = Continuation(0, detokenizer_for(vocabulary), StopStrings(stops), frozenset())
    shown = ""
    for message in messages(ids, sizes):
        piece = continuation.take(message)
        shown += piece.text
        assert len(piece.tokens) == len(piece.offsets)
        if piece.finish_reason:
            break
    assert (shown, piece.completion_tokens, piece.finish_reason) == expected


def test_a_leading_space_of_bytes(vocabularies):
    """A space that the decoder drops from the front is not shown before a stop string either."""
    vocabulary = vocabularies["llama"]
    ids = [vocabulary.tokenizer.token_to_id(piece) for piece in ("<0x20>", "<0x61>")]
    continuation = Continuation(0, detokenizer_for(vocabulary), StopStrings(["a"]), frozenset())
    pieces = [continuation.take(message) for message in messages(ids, [1])]
    assert [(piece.text, piece.finish_reason) for piece in pieces] == [("", None), ("", "stop")]


def test_a_verifier_that_gives_up(vocabularies):
    """A generation that the verifier cancelled by itself is an error, not an end."""
    vocabulary = vocabularies["llama"]
    continuation = Continuation(0, detokenizer_for(vocabulary), StopStrings([]), frozenset())
    cancelled = types_pb2.FINISH_REASON_CANCELLED
    with pytest.raises(Unavailable, match="CANCELLED"):
        continuation.take(verifier_pb2.GenerateResponse(finish_reason=cancelled))
