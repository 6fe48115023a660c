"""Maps local folders, which some trainers insist on, to places in the bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import overlaps
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.fsspec import misdirected
from checkpoint_sidecar.store.fsspec.storage_options import SCHEMES, settings_of

_OPERATION = "map the folder"


@dataclass(frozen=True, slots=True)
class MappedFolders:
    """Local folders and the stores that take their place.

    Attributes:
        stores: Settings of the store by absolute path of the folder.
    """

    stores: Mapping[str, StoreSettings]

    @classmethod
    def of(cls, folders: Mapping[str | os.PathLike[str], str | StoreSettings]) -> MappedFolders:
        """Check and resolve the folders of ``install``. Creates no folder and makes no request.

        Raises:
            ConfigurationError: A folder is not an absolute path below the root, a URL is not one that this package
                serves, or two folders or two URLs overlap.
        """
        stores: dict[str, StoreSettings] = {}
        for folder, target in folders.items():
            path = _checked(os.fspath(folder))
            for other in stores:
                if _nested(path, other) or _nested(other, path):
                    raise ConfigurationError(
                        _OPERATION,
                        path,
                        f"it overlaps the folder {other}, which is mapped as well",
                        "Map folders that do not contain each other.",
                    )
            settings = _settings(path, target)
            for other, taken in stores.items():
                if overlaps(settings.url, taken.url):
                    raise ConfigurationError(
                        _OPERATION,
                        path,
                        f"its URL {settings.url} overlaps that of {other}, {taken.url}",
                        "Give each folder a URL of its own.",
                    )
            stores[path] = settings
        return cls(stores)

    def settings_of(self, path: str | os.PathLike[str]) -> StoreSettings | None:
        """Return the settings of the store that takes the place of a local path; None if its folder is not mapped."""
        text = os.fspath(path)
        if "://" in text or not self.stores:
            return None
        for candidate in _spellings(text):
            for folder, settings in self.stores.items():
                for root in _spellings(folder):
                    if _nested(candidate, root):
                        inner = PurePosixPath(candidate).relative_to(root).as_posix()
                        return settings if inner == "." else replace(settings, url=f"{settings.url}/{inner}")
        return None


UNMAPPED = MappedFolders({})


def _checked(folder: str) -> str:
    if "://" in folder:
        cause = "it is a URL"
    elif not os.path.isabs(folder):
        cause = "it is a relative path, which another working directory would change"
    elif os.path.abspath(folder) == "/":
        cause = "it is the root of all folders"
    else:
        misdirected.check(folder, _OPERATION)
        return os.path.abspath(folder)
    raise ConfigurationError(_OPERATION, folder, cause, "Pass the absolute path of the folder that the trainer uses.")


def _settings(folder: str, target: str | StoreSettings) -> StoreSettings:
    if isinstance(target, StoreSettings):
        return target
    scheme, separator, _ = target.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigurationError(
            _OPERATION,
            folder,
            f"{target} is not a URL that install() serves",
            f"Use one of {', '.join(f'{scheme}://' for scheme in sorted(SCHEMES))}.",
        )
    settings = settings_of(target, {})
    return replace(settings, url=settings.url.rstrip("/"))


def _spellings(path: str) -> Iterator[str]:
    """Yield a path as written and with links resolved: trainers pass on either."""
    yield os.path.abspath(path)
    yield os.path.realpath(path)


def _nested(path: str, folder: str) -> bool:
    return PurePosixPath(path).is_relative_to(folder)
