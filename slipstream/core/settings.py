"""Where is kept what was prepared once: models, compiled kernels."""

from __future__ import annotations

from pathlib import Path

import platformdirs
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """Read from the environment: `SLIPSTREAM_CACHE` names the cache folder."""

    model_config = SettingsConfigDict(env_prefix="SLIPSTREAM_", env_ignore_empty=True)

    cache: Path = Field(default_factory=lambda: Path(platformdirs.user_cache_dir("slipstream")))


def cache_folder() -> Path:
    """The folder of what is prepared once; it may not exist yet."""
    return CacheSettings().cache.expanduser().absolute()
