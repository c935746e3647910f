"""What both front doors open on."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.admission import Admission
from gateway.generation import GenerationService
from gateway.kept import Kept
from gateway.keys import KeyRing


@dataclass(frozen=True, slots=True)
class Parts:
    """Attributes:
    service: the core.
    kept: what outlives a request.
    keys: None leaves the doors open.
    max_body_bytes: of a request.
    send_timeout: seconds that a client may leave a stream unread.
    """

    service: GenerationService
    kept: Kept
    keys: KeyRing | None
    admission: Admission
    max_body_bytes: int
    send_timeout: float
