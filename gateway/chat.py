"""The turns of a chat, as both front doors take them."""

from __future__ import annotations

from typing import Any, Literal, get_args

Role = Literal["system", "developer", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


def known_role(role: Any) -> Any:
    """The role unchanged.

    Raises:
        ValueError: it is none of ROLES; names it and them.
    """
    if role not in ROLES:
        raise ValueError(f"unknown role {str(role)[:40]!r}; the roles are {', '.join(ROLES)}")
    return role


def turn(role: str, content: str, name: str | None = None) -> dict[str, str]:
    """As chat templates expect it. `developer` is OpenAI's newer word for `system`."""
    named = {} if name is None else {"name": name}
    return {"role": "system" if role == "developer" else role, "content": content, **named}
