"""Putting a model into a folder of one's choice, such as one on a volume that many pods share."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from slipstream.core.errors import CheckpointError, ConfigurationError
from slipstream.models import default, default_tokenizer, hub, manifest
from slipstream.models.cache import LOCK_SECONDS, is_whole, open_to_all
from slipstream.models.checkpoint import check_folder, check_without_weights
from slipstream.models.lease import STALE_SECONDS, Lease
from slipstream.models.progress import Progress, Quiet
from slipstream.models.resolve import kind_of, resolve

_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True, slots=True)
class _Order:
    """What shall be in the folder, and how it comes there.

    Attributes:
        source: names it, in the manifest of the folder that holds it.
        part: manifest.MODEL or manifest.TOKENIZER.
        find: looks for it, which may ask the hub, when it is known that it has to be made.
        resumable: whether a half of it is of use to the next try.
    """

    source: str
    part: str
    find: Callable[[], _Found]
    resumable: bool = False

    @property
    def key(self) -> str:
        """Of two halves, those with one key may be put together."""
        return blake2b(f"{self.source} {self.part}".encode(), digest_size=6).hexdigest()

    def is_in(self, folder: Path, *, verify: bool) -> bool:
        """Whether the folder holds it whole; a model with its weights is more than a tokenizer."""
        if not is_whole(folder, verify=verify):
            return False
        source, part = manifest.origin(folder)
        return source == self.source and part in (self.part, manifest.MODEL)


@dataclass(frozen=True, slots=True)
class _Found:
    """The files by their sizes in bytes, what writes them, and the hashes that they must have."""

    sizes: dict[str, int]
    write: Callable[[Path], None]
    hashes: dict[str, str] = field(default_factory=dict)


def place(
    model: str,
    target: Path,
    *,
    tokenizer_only: bool = False,
    progress: Progress | None = None,
    verify: bool = False,
    stale: float = STALE_SECONDS,
) -> Path:
    """Puts a model into the folder `target`, which then is there whole or not at all.

    Nothing is done where it is whole already. Of several processes at once, on any machines, one
    does the work beside `target` while the others wait; where it is killed, the next goes on after
    `stale` seconds, with the files that are there. A folder of anything else is left as it is.

    Args:
        model: `default`, a local folder, a .gguf file, or a hub name `owner/name[@revision]`.
        tokenizer_only: what a gateway needs: no weights, and apart from .gguf files no torch.
        progress: is told of downloads and conversions.
        verify: hash every file of a folder that is there, not only compare sizes.

    Raises:
        CheckpointError: there is no such model, or what came of it is not whole.
        ConfigurationError: `target` is something else or cannot be written, or the room is short.
        DeadlineExceeded: another process took an hour.
    """
    progress = Quiet() if progress is None else progress
    target = target.expanduser().absolute()
    order = _order(model, tokenizer_only, progress)
    # A name such as `default` may also be that of a folder here.
    if kind_of(model) == "folder" and Path(model).expanduser().resolve() == target.resolve():
        return resolve(model, verify=verify)
    if order.is_in(target, verify=verify):
        return target
    _check_free(target, order)

    def waiting() -> None:
        with progress.work(f"Waiting for another process that prepares {target}"):
            pass

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lease = Lease(
            target.with_name(f".{target.name}.lease"),
            seconds=LOCK_SECONDS,
            stale=stale,
            waiting=waiting,
        )
        with lease:
            if not order.is_in(target, verify=verify):
                _make(order, target, lease.owner)
    except (OSError, CheckpointError) as failure:
        # One that stood still for long finds that another did its work, and took its files for it.
        if order.is_in(target, verify=False):
            return target
        if isinstance(failure, CheckpointError):
            raise
        reason = failure.strerror or str(failure)
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = "the disk is full"
        raise ConfigurationError(f"cannot write {target}: {reason}") from failure
    return target


def _order(model: str, tokenizer_only: bool, progress: Progress) -> _Order:
    part = manifest.TOKENIZER if tokenizer_only else manifest.MODEL
    patterns = hub.TOKENIZER_PATTERNS if tokenizer_only else hub.PATTERNS
    kind = kind_of(model)
    path = Path(model).expanduser().absolute()

    def prepared() -> _Found:
        return _files_of(resolve(model, progress=progress), patterns)

    def from_hub() -> _Found:
        listing = hub.look_up(model, patterns)
        total = sum(listing.sizes.values())

        def write(folder: Path) -> None:
            with progress.work(f"Downloading {model}", total):
                hub.download(listing, folder)
            shutil.rmtree(folder / ".cache", ignore_errors=True)

        return _Found(listing.sizes, write, listing.hashes)

    match kind:
        case "default":
            source = f"{default.REQUIREMENT} sha256:{default.GGUF_SHA256}"
            if tokenizer_only:
                return _Order(source, part, lambda: _Found({}, default_tokenizer.unpack))
            return _Order(source, part, prepared)
        case "hub":
            repository, _, revision = model.partition("@")
            source = f"hub {repository}@{revision or 'main'}"
            return _Order(source, part, from_hub, resumable=not tokenizer_only)
        case "gguf":
            size = path.stat().st_size if path.is_file() else 0
            return _Order(f"gguf {path.name} of {size} bytes", part, prepared)
        case "folder":
            return _Order(f"folder {path}", part, lambda: _files_of(path, patterns))


def _files_of(folder: Path, patterns: list[str]) -> _Found:
    """Copies of a prepared folder's files."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != manifest.NAME and hub.matches(path.name, patterns)
    ]

    def write(into: Path) -> None:
        for path in files:
            shutil.copyfile(path, into / path.name)

    return _Found({path.name: path.stat().st_size for path in files}, write)


def _check_free(target: Path, order: _Order) -> None:
    """Raises ConfigurationError where `target` is there and not ours to replace."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ConfigurationError(f"{target} is a file; a folder is needed")
    if os.path.ismount(target):
        raise ConfigurationError(
            f"{target} is a volume's own folder, which cannot be renamed to: give a folder in it,"
            f" as {target / 'model'}"
        )
    if not any(target.iterdir()):
        return
    if not (target / manifest.NAME).exists():
        raise ConfigurationError(
            f"{target} holds files that `slipstream fetch` did not put there: give another folder,"
            " or serve that one as it is with --model"
        )
    try:
        source, _ = manifest.origin(target)
    except CheckpointError:
        # Damaged, and so to be made anew.
        return
    if source != order.source:
        raise ConfigurationError(
            f"{target} holds {source} where {order.source} was asked for: give each a folder of"
            " its own"
        )


def _make(order: _Order, target: Path, owner: str) -> None:
    """Builds the folder under another name beside `target` and renames it."""
    own = target.with_name(f".{target.name}.partial-{order.key}-{owner}")
    _adopt(order, target, own)
    own.mkdir(exist_ok=True)
    written = False
    try:
        found = order.find()
        _check_room(order, found, own)
        found.write(own)
        written = True
        check = check_folder if order.part == manifest.MODEL else check_without_weights
        check(own)
        hashes = manifest.write(own, order.source, order.part)
        for name, wanted in found.hashes.items():
            if hashes.get(name) != wanted:
                raise CheckpointError(f"{name} came with another content than the hub says it has")
        open_to_all(own)
        _publish(order, own, target)
    except BaseException as failure:
        full = isinstance(failure, ConfigurationError) and not isinstance(failure, CheckpointError)
        # The next try goes on with a download that was cut short; a full disk is to be freed.
        if written or full or not order.resumable or not any(own.glob("*")):
            shutil.rmtree(own, ignore_errors=True)
        raise


def _adopt(order: _Order, target: Path, own: Path) -> None:
    """Takes over what a process that is gone has left, if it is of use, and removes the rest."""
    for left in sorted(target.parent.glob(f".{target.name}.partial-*")):
        useful = order.resumable and left.name.startswith(f".{target.name}.partial-{order.key}-")
        if useful and not own.exists():
            left.rename(own)
            for half in [*own.rglob("*.lock"), *own.rglob("*.incomplete")]:
                half.unlink(missing_ok=True)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _check_room(order: _Order, found: _Found, own: Path) -> None:
    # What was taken over may be of a commit before this one.
    for path in own.iterdir():
        if path.is_file() and path.name not in found.sizes:
            path.unlink()
    there = {path.name: path.stat().st_size for path in own.iterdir() if path.is_file()}
    needed = sum(size for name, size in found.sizes.items() if there.get(name) != size)
    free = shutil.disk_usage(own).free
    if needed > free:
        raise ConfigurationError(
            f"{own.parent} has {free / 1e9:.1f} GB free, and {order.source} needs"
            f" {needed / 1e9:.1f} GB more"
        )


def _publish(order: _Order, own: Path, target: Path) -> None:
    try:
        own.rename(target)
        return
    except OSError as failure:
        if failure.errno not in _TAKEN:
            raise
    # Another holder of the lease was quicker while this one stood still, or a damaged folder is
    # there, or a tokenizer where now the model belongs.
    if order.is_in(target, verify=True):
        shutil.rmtree(own, ignore_errors=True)
        return
    old = own.with_name(f".{target.name}.partial-old-{own.name[-32:]}")
    target.rename(old)
    own.rename(target)
    shutil.rmtree(old, ignore_errors=True)
