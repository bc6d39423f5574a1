"""The package learn2learn, imported only when it is asked for."""

from __future__ import annotations

from types import ModuleType

from metalearn.errors import ConfigError

__all__ = ["import_learn2learn"]


def import_learn2learn() -> ModuleType:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import learn2learn
    except ImportError as error:
        raise ConfigError(
            f"learn2learn cannot be imported ({error}), but metalearn.compat.learn2learn needs it; build it with "
            ".ci/build_learn2learn, since pip cannot on Python 3.11 and later"
        ) from error
    return learn2learn
