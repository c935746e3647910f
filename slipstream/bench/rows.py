"""The rows of the table, and the processes behind each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slipstream.core.errors import ConfigurationError

PLAIN = "plain-1core"
PLAIN_ALL = "plain-allcores"
SEPARATE = "speculative-separate"
SHARED = "speculative-shared"
BEST = "speculative-best"
PLAIN_INT8 = "plain-int8"
PLAIN_INT8_ONE = "plain-int8-1core"
INT8 = "speculative-int8"
INT8_SEPARATE = "int8-separate"
RANDOM = "drafter-random"
SLOW = "drafter-slow"
WHOLE = "drafter-whole"
SHARDS = "drafter-2shards"
TRANSFORMERS = "transformers"
TRANSFORMERS_PLD = "transformers-pld"

# A drafter's process with a model of next to nothing: no row, but memory is compared with it.
BASE = "base"

NUM_SHARDS = 2
SLOWDOWN = 10
_AT_ONCE = 4

Drafter = Literal["none", "own", "slow", "random", "shards"]


@dataclass(frozen=True, slots=True)
class Setup:
    """A verifier and what drafts for it. Rows with the same setup share its processes.

    Attributes:
        drafter: none; own: the service as it comes; slow: the same, each pass taking SLOWDOWN
            times as long; random: drafts out of the air; shards: the same as own in NUM_SHARDS
            processes.
        all_cores: verifier and drafter may use every core, else the verifier has the first and
            the drafter the second (or the first, where there is one only).
        placement: how the two share cores, where they may.
        precision: of the target model.
        verifier_options, drafter_options: further words of the services' command lines.
    """

    name: str
    drafter: Drafter = "none"
    all_cores: bool = False
    placement: str = "separate"
    precision: str = "native"
    verifier_options: tuple[str, ...] = ()
    drafter_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """How a row's generations run. `setup` is None for those of transformers.

    Attributes:
        at_once: requests side by side; the row's speed is that of all together.
    """

    name: str
    setup: Setup | None = None
    speculative: bool = False
    at_once: int = 1


# The verifier's own guesses would hide what a bad drafter costs.
_NO_GUESSES = ("--ngram", "off")
_ONE = Setup("one-core", "own")
_INT8_ONE = Setup("int8-one-core", "own", precision="int8")

TABLE = (
    Row(PLAIN, _ONE),
    Row(PLAIN_ALL, Setup("all-cores", all_cores=True)),
    Row(SEPARATE, _ONE, speculative=True),
    Row(SHARED, Setup("shared", "own", all_cores=True, placement="shared"), speculative=True),
    Row(BEST, Setup("best", "own", all_cores=True, placement="auto"), speculative=True),
    Row(TRANSFORMERS),
    Row(TRANSFORMERS_PLD),
    Row(PLAIN_INT8_ONE, _INT8_ONE),
    Row(INT8_SEPARATE, _INT8_ONE, speculative=True),
    Row(PLAIN_INT8, Setup("int8-all-cores", all_cores=True, precision="int8")),
    Row(
        INT8,
        Setup("int8-best", "own", all_cores=True, placement="auto", precision="int8"),
        speculative=True,
    ),
    Row(RANDOM, Setup("random", "random", verifier_options=_NO_GUESSES), speculative=True),
    Row(SLOW, Setup("slow", "slow", verifier_options=_NO_GUESSES), speculative=True),
    Row(WHOLE, _ONE, speculative=True, at_once=_AT_ONCE),
    Row(SHARDS, Setup("shards", "shards"), speculative=True, at_once=_AT_ONCE),
)
ROWS = tuple(row.name for row in TABLE)

# Rows of one function: where exactness is strict, all give the tokens of the first.
SAME_TOKENS = (
    (PLAIN, PLAIN_ALL, SEPARATE, SHARED, BEST, RANDOM, SLOW, WHOLE, SHARDS),
    (PLAIN_INT8, PLAIN_INT8_ONE, INT8, INT8_SEPARATE),
)


def drafter_name(row: str, shard: int | None = None) -> str:
    """The process that drafts for a row, or one of its shards."""
    setup = next(each.setup for each in TABLE if each.name == row)
    assert setup is not None, "transformers has no drafter"
    return f"{setup.name}-drafter" if shard is None else f"{setup.name}-shard{shard}"


def check_rows(rows: Sequence[str]) -> tuple[Row, ...]:
    """The rows asked for, in the order of the table. Raises ConfigurationError on unknown ones."""
    unknown = [row for row in rows if row not in ROWS]
    if unknown or not rows:
        raise ConfigurationError(f"rows must be among {', '.join(ROWS)}; got {unknown or 'none'}")
    return tuple(row for row in TABLE if row.name in rows)
