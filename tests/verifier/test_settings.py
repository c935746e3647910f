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
        ("--draft-length 9", "--draft-length 9 is more than the 8 drafts"),
        ("--draft-length 4 --window 3", "--draft-length 4 is more than the 3 drafts"),
        ("--draft-length 4 --placement shared", "--draft-length N takes what is there"),
    ],
)
def test_lengths_that_cannot_be_had(words, said) -> None:
    """A refusal begins with the setting, or says which two of them do not go together."""
    with pytest.raises(ConfigurationError) as raised:
        read_settings(Settings, ["--model", "m", *words.split()])
    assert raised.value.message.startswith(said)


@pytest.mark.parametrize(
    "words", ["", "--draft-length 8", "--window 3", "--draft-length 64 --window 64"]
)
def test_lengths_that_fit(words) -> None:
    """A step may take every draft that there can be."""
    given = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    settings = read_settings(Settings, ["--model", "m", *words.split()])
    assert str(settings.draft_length) == given.get("--draft-length", "auto")
    assert str(settings.window) == given.get("--window", "auto")
