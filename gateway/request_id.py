"""The name of a request: its client's, or a new one."""

from __future__ import annotations

import re
import uuid

# It stands in logs, in ids and in headers.
_ACCEPTABLE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def request_name(given: str) -> str:
    """The client's own name where it is short and plain; otherwise a new one, unlike any other."""
    return given if _ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
