"""Where a search is kept: a journal beside the report, that another run can take up."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from slipstream.core.errors import ConfigurationError

_NAME = "layer plan"
_IDENTITY = "identity"


class StudyDict(MutableMapping[str, dict[str, Any]]):
    """A dict that lives in a study's attributes; values are set whole."""

    def __init__(self, study: optuna.Study, name: str) -> None:
        self._study, self._name = study, name

    def _all(self) -> dict[str, dict[str, Any]]:
        return dict(self._study.user_attrs.get(self._name, {}))

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._all()[key]

    def __setitem__(self, key: str, value: dict[str, Any]) -> None:
        self._study.set_user_attr(self._name, self._all() | {key: value})

    def __delitem__(self, key: str) -> None:
        kept = self._all()
        del kept[key]
        self._study.set_user_attr(self._name, kept)

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


def open_study(journal: Path, identity: dict[str, Any], *, resume: bool) -> optuna.Study:
    """The study in a journal file, made where there is none.

    Args:
        identity: what a search must have in common with the one that it takes up.

    Raises:
        ConfigurationError: there is a search already and none is to be taken up, or the one there
            is another one, or the file cannot be written or read.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if journal.exists() and not resume:
        raise ConfigurationError(
            f"{journal} holds a search already: take it up with --resume, "
            "or choose another --report"
        )
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True
        )
    except OSError as failure:
        raise ConfigurationError(f"cannot keep the search in {journal}: {failure}") from failure
    except (ValueError, KeyError) as failure:
        raise ConfigurationError(f"{journal} is no search of ours: {failure}") from failure
    before = study.user_attrs.get(_IDENTITY)
    if before is None:
        study.set_user_attr(_IDENTITY, identity)
    elif before != identity:
        differs = sorted(
            k for k in identity.keys() | before.keys() if identity.get(k) != before.get(k)
        )
        raise ConfigurationError(
            f"the search in {journal} had other {', '.join(differs)}: give the same, or choose "
            "another --report"
        )
    return study
