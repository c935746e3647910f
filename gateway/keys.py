"""API keys: a text file of `name:sha256` lines, and the commands that add to it and check it.

python -m gateway.keys add NAME FILE
python -m gateway.keys check FILE
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slipstream.core.errors import ConfigurationError, NotAuthenticated

_LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")
_CHECK_SECONDS = 1.0
log = logging.getLogger(__name__)


def _hash(key: str) -> str:
    # The keys are 256 random bits: a slow hash, made for passwords, would add nothing.
    return hashlib.sha256(key.encode()).hexdigest()


def read(path: Path) -> dict[str, str]:
    """Name to hash.

    Raises:
        ConfigurationError: the file cannot be read, or names the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise ConfigurationError(f"cannot read the API keys in {path}: {failure}") from failure
    entries: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        match = _LINE.fullmatch(entry)
        if match is None:
            raise ConfigurationError(f"{path}, line {number}: not of the form name:sha256hex")
        if match[1] in entries:
            raise ConfigurationError(f"{path}, line {number}: {match[1]} is there twice")
        entries[match[1]] = match[2]
    return entries


class KeyRing:
    """The keys of one file, read again when it changes. A broken file keeps the keys before it.

    Raises:
        ConfigurationError: the file is unusable at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = read(path)
        self._stamp = self._stat()
        self._checked = time.monotonic()

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def check(self, authorization: str | None) -> str:
        """The name of the key in an `Authorization: Bearer KEY` header.

        Raises:
            NotAuthenticated: there is no key, or it is not in the file.
        """
        self._reload()
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise NotAuthenticated("give an API key: 'Authorization: Bearer KEY'")
        digest = _hash(key.strip())
        found: str | None = None
        # Every entry is compared, so that the time taken does not tell which one it was.
        for name, known in self._entries.items():
            if hmac.compare_digest(digest, known):
                found = name
        if found is None:
            raise NotAuthenticated("the API key is not known here")
        return found

    def _reload(self) -> None:
        now = time.monotonic()
        if now - self._checked < _CHECK_SECONDS:
            return
        self._checked = now
        stamp = self._stat()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._entries = read(self._path)
        except ConfigurationError as failure:
            log.error("%s; the keys read before stay in force", failure.message)  # noqa: TRY400
        else:
            log.info("read %d API keys from %s", len(self._entries), self._path)


def add(name: str, path: Path) -> str:
    """Appends a fresh key's hash to the file, made private if new, and returns the key.

    Raises:
        ConfigurationError: the name is not usable or taken, or the file is unusable.
    """
    key = f"sk-{secrets.token_urlsafe(32)}"
    line = f"{name}:{_hash(key)}"
    if _LINE.fullmatch(line) is None:
        raise ConfigurationError("a name has 1 to 64 of: letters, digits, '.', '_', '-'")
    if path.exists() and name in read(path):
        raise ConfigurationError(f"{path} already has a key named {name}; remove its line first")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                line = "\n" + line
            file.write(line + "\n")
    except OSError as failure:
        raise ConfigurationError(f"cannot write {path}: {failure}") from failure
    return key


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gateway.keys", description="API keys")
    commands = parser.add_subparsers(required=True)
    adding = commands.add_parser("add", help="make a key, print it once, keep only its hash")
    adding.add_argument("name")
    adding.add_argument("file", type=Path)
    checking = commands.add_parser("check", help="say what is wrong with a file, if anything is")
    checking.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)
    try:
        if "name" not in chosen:
            read(chosen.file)
            return 0
        key = add(chosen.name, chosen.file)
    except ConfigurationError as failure:
        sys.stderr.write(f"error: {failure.message}\n")
        return 2
    sys.stdout.write(f"{key}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
