"""Models of the Hugging Face hub, in its own cache."""

from __future__ import annotations

import sys
from pathlib import Path

from slipstream.core.errors import CheckpointError

# Weights, config, tokenizer and chat template; nothing that would run as code.
PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]


def resolve_hub(name: str) -> Path:
    """Downloads what is missing of `owner/name` or `owner/name@revision`; offline, what is there.

    Raises:
        CheckpointError: there is no such model, no access to it, or no network and no copy.
    """
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    repository, _, revision = name.partition("@")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=PATTERNS,
                # Some repositories carry the original weights in a subfolder, as large again.
                ignore_patterns=["*/*"],
            )
        )
    except errors.HFValidationError as failure:
        raise CheckpointError(f"{name!r} is neither a file, a folder nor a hub name") from failure
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
        reason = " ".join(str(failure).split())
        raise CheckpointError(f"cannot download {repository} from the hub: {reason}") from failure
