"""Models of the Hugging Face hub: in its own cache, or downloaded into a folder."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from slipstream.core.errors import CheckpointError, ConfigurationError

# Weights, config, tokenizer and chat template; nothing that would run as code.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
# What a gateway reads, and what says which model it belongs to.
TOKENIZER_PATTERNS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
]
# Some repositories carry the original weights in a subfolder, as large again.
_LEFT_OUT = ["*/*"]


@dataclass(frozen=True, slots=True)
class Listing:
    """What there is to download of one commit of a model.

    Attributes:
        sizes: bytes of each file.
        hashes: SHA-256 in hex of those whose hash the hub knows, the large ones.
    """

    repository: str
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str]


def resolve_hub(name: str) -> Path:
    """Downloads what is missing of `owner/name` or `owner/name@revision`; offline, what is there.

    Raises:
        CheckpointError: there is no such model, no access to it, or no network and no copy.
        ConfigurationError: the disk is full.
    """
    import huggingface_hub

    repository, revision = _split(name)
    with _told(repository, revision):
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=PATTERNS, ignore_patterns=_LEFT_OUT
            )
        )


def look_up(name: str, patterns: list[str]) -> Listing:
    """Asks the hub what `owner/name[@revision]` has of `patterns`. Raises as `resolve_hub`."""
    import huggingface_hub

    repository, revision = _split(name)
    with _told(repository, revision):
        found = huggingface_hub.HfApi().model_info(
            repository, revision=revision, files_metadata=True
        )
    files = [file for file in found.siblings or [] if matches(file.rfilename, patterns)]
    return Listing(
        repository,
        found.sha or revision or "main",
        {file.rfilename: file.size or 0 for file in files},
        {file.rfilename: file.lfs.sha256 for file in files if file.lfs is not None},
    )


def download(listing: Listing, folder: Path) -> None:
    """Brings the files of `listing` into `folder`; those that are there whole stay as they are.

    Raises:
        CheckpointError: the hub cannot be reached or says no.
        ConfigurationError: the disk is full.
    """
    import huggingface_hub

    with _told(listing.repository, listing.commit):
        huggingface_hub.snapshot_download(
            listing.repository,
            revision=listing.commit,
            local_dir=folder,
            allow_patterns=list(listing.sizes),
        )


def matches(name: str, patterns: list[str]) -> bool:
    """Whether the file is wanted, of a folder's own and not of its subfolders'."""
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in patterns)


def _split(name: str) -> tuple[str, str | None]:
    repository, _, revision = name.partition("@")
    return repository, revision or None


@contextlib.contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """The errors of the hub's client in our words; its bars only where somebody sees them."""
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except errors.HFValidationError as failure:
        raise CheckpointError(
            f"{repository!r} is neither a file, a folder nor a hub name"
        ) from failure
    except errors.GatedRepoError as failure:
        raise CheckpointError(
            f"{repository} asks for its terms to be accepted: do so on the hub and set HF_TOKEN"
        ) from failure
    except errors.RevisionNotFoundError as failure:
        raise CheckpointError(f"{repository} has no revision {revision}") from failure
    except errors.RepositoryNotFoundError as failure:
        raise CheckpointError(
            f"there is no model {repository} on the hub, or HF_TOKEN gives no access to it"
        ) from failure
    except errors.LocalEntryNotFoundError as failure:
        raise CheckpointError(
            f"{repository} is not in the local hub cache and the hub cannot be reached; "
            "--model also takes a local folder or a .gguf file"
        ) from failure
    except OSError as failure:
        if failure.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigurationError(
                f"the disk is full: cannot write {failure.filename or repository}"
            ) from failure
        raise _cannot(repository, failure) from failure
    # No connection, a broken answer. Releases of the client use different HTTP libraries, whose
    # errors have no base in common.
    except Exception as failure:
        raise _cannot(repository, failure) from failure


def _cannot(repository: str, failure: Exception) -> CheckpointError:
    reason = " ".join(str(failure).split()) or type(failure).__name__
    return CheckpointError(f"cannot download {repository} from the hub: {reason}")
