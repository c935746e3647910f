"""Values that options of `slipstream up` choose from."""

from __future__ import annotations

from enum import StrEnum


class Switch(StrEnum):
    on = "on"
    off = "off"


class Dtype(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float32 = "float32"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Exactness(StrEnum):
    auto = "auto"
    fast = "fast"
    strict = "strict"


class TargetPrecision(StrEnum):
    native = "native"
    int8 = "int8"


class KvContext(StrEnum):
    own = "own"
    prompt = "prompt"
    commit = "commit"


class Placement(StrEnum):
    auto = "auto"
    separate = "separate"
    shared = "shared"


class Automatic(StrEnum):
    off = "off"
    on = "on"
    auto = "auto"


class LogFormat(StrEnum):
    text = "text"
    json = "json"


class LogLevel(StrEnum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
