"""Packages that some commands need and a gateway's installation does without."""

from __future__ import annotations

from importlib.util import find_spec

from slipstream.core.errors import ConfigurationError

# Of each extra of pyproject.toml, modules of which one is missing where it is not installed.
_MODULES = {
    "engine": ("torch", "transformers", "safetensors", "accelerate", "gguf", "numba", "pip"),
    "tune": ("optuna", "matplotlib"),
}


# Of `engine`, what only making a model's folder needs.
_MAKING = frozenset({"gguf", "pip"})


def require(extra: str, purpose: str, *, made: bool = False) -> None:
    """Passes where the packages of the extra `engine` or `tune` are installed.

    Args:
        purpose: what needs them, as the subject of a sentence.
        made: the model's folder is there, so what makes one is not looked for.

    Raises:
        ConfigurationError: names what is missing and the command that installs it.
    """
    wanted = [name for name in _MODULES[extra] if not (made and name in _MAKING)]
    missing = [name for name in wanted if not _is_there(name)]
    if missing:
        *first, last = missing
        names = f"{', '.join(first)} and {last}" if first else last
        raise ConfigurationError(
            f"{purpose} needs {names}: pip install 'slipstream-serve[{extra}]'"
        )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
