"""What the verifier's command line refuses, and how it says so."""

from __future__ import annotations

import pytest

from slipstream.core.errors import ConfigurationError
from slipstream.wire.process import read_settings
from verifier_service.settings import Settings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--window 0", "--window: "),
        ("--window many", "--window: "),
        ("--draft-length 99", "--draft-length: "),
        ("--draft-length 4 --placement shared", "--draft-length N takes what is there"),
    ],
)
def test_lengths_that_cannot_be_had(words, said) -> None:
    """A refusal begins with the setting, or says which two of them do not go together."""
    with pytest.raises(ConfigurationError) as raised:
        read_settings(Settings, ["--model", "m", *words.split()])
    assert raised.value.message.startswith(said)
