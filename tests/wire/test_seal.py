"""The seal itself: what was changed, lost, repeated or misplaced is refused."""

from __future__ import annotations

import pytest
from google.protobuf.wrappers_pb2 import BytesValue
from grpc_health.v1 import health_pb2
from hypothesis import given
from hypothesis import strategies as st

from slipstream.wire import proto
from slipstream.wire.seal import FIELD, SIZE, Damaged, Seal, Unsealed

METHOD = "/package.Service/Method"
messages = st.binary(max_size=300)
names = st.sampled_from(["", "00ff00ff00ff00ff"])


def seal(name: str = "name", method: str = METHOD, direction="request", demanded=True) -> Seal:
    return Seal(name, method, direction, demanded=demanded)


def opened(sealed: bytes, name: str, *, demanded: bool = True) -> bytes | None:
    """What the message reads as; None where it is refused."""
    try:
        return seal(name, demanded=demanded).open(sealed)
    except Damaged:
        return None


@given(messages, names)
def test_a_message_comes_back(message, name):
    """Whatever it is, the empty one too, it is the same behind seven bytes less."""
    sealed = seal(name).close(message)
    assert len(sealed) == len(message) + SIZE == len(message) + 7
    assert opened(sealed, name) == message


@given(messages, names, st.data())
def test_a_flipped_bit_is_refused(message, name, data):
    """Any bit of a sealed message: where a seal is demanded, always; where it is not, a message may
    read as one without a seal, whole, but never as another sealed one."""
    sealed = bytearray(seal(name).close(message))
    place = data.draw(st.integers(0, 8 * len(sealed) - 1))
    sealed[place // 8] ^= 1 << place % 8
    assert opened(bytes(sealed), name) is None
    in_tag = len(message) <= place // 8 < len(message) + SIZE - 4
    assert opened(bytes(sealed), name, demanded=False) == (bytes(sealed) if in_tag else None)


@given(messages, names, st.data())
def test_a_replaced_byte_is_refused(message, name, data):
    """Any byte by any other."""
    sealed = bytearray(seal(name).close(message))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    assert opened(bytes(sealed), name) is None


@given(messages, names, st.data())
def test_a_truncated_message_is_refused(message, name, data):
    """Cut anywhere, at either end."""
    sealed = seal(name).close(message)
    count = data.draw(st.integers(0, len(sealed) - 1))
    assert opened(sealed[:count], name) is None
    assert opened(sealed[len(sealed) - count :], name) is None


@given(messages)
def test_a_message_in_another_place_is_refused(message):
    """Another call, method, direction or number: the seal is of one place only."""
    sealed = seal().close(message)
    others = [seal("other"), seal(method="/package.Service/Other"), seal(direction="response")]
    later = seal()
    later.open(seal().close(b""))
    for other in (*others, later):
        with pytest.raises(Damaged):
            other.open(sealed)


def test_messages_have_their_order():
    """A stream opens in the order in which it was sealed; a message left out is missed at once."""
    sender, receiver = seal(), seal()
    sent = [sender.close(bytes([number])) for number in range(200)]
    assert [receiver.open(each) for each in sent] == [bytes([number]) for number in range(200)]
    assert sender.end == receiver.end == (("slipstream-seal", "200"),)
    again = seal()
    again.open(sent[0])
    with pytest.raises(Damaged, match="does not match"):
        again.open(sent[2])


def test_without_a_name_the_sum_is_the_plain_one():
    """For clients that do not name their calls: CRC-32 of the bytes, whatever the place."""
    # The check value of CRC-32 is that of these nine digits.
    sealed = seal("").close(b"123456789")
    assert sealed[-4:] == (0xCBF43926).to_bytes(4, "little")
    one = seal("")
    assert [one.open(sealed), one.open(sealed)] == [b"123456789"] * 2


def test_an_unsealed_message():
    """Is refused as such where a seal is demanded, and taken as it is where it is not."""
    for message in (b"", b"abc", BytesValue(value=bytes(100)).SerializeToString()):
        with pytest.raises(Unsealed):
            seal().open(message)
        assert seal(demanded=False).open(message) == message


@given(messages)
def test_readers_of_protobuf_skip_the_seal(message):
    """A reader that knows nothing of seals finds the message, and an unknown field."""
    sealed = seal().close(BytesValue(value=message).SerializeToString())
    assert BytesValue.FromString(sealed).value == message


def test_no_message_of_ours_has_the_field():
    """The number is free in every message that we send, nested ones too."""
    modules = [getattr(proto, name) for name in dir(proto) if name.endswith("_pb2")]
    assert len(modules) >= 5
    for module in (*modules, health_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            assert FIELD not in message.fields_by_number
