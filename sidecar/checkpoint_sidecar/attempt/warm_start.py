"""Chooses the snapshot of another run at which a new run begins, and records it in the log. See ``core.warm_start``.

Used on rank 0 only, except for ``StartFrom`` and ``source_settings``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from checkpoint_sidecar.attempt.session import AttemptSession, Candidate, candidate_of
from checkpoint_sidecar.core import warm_start as decisions
from checkpoint_sidecar.core.address import RunAddress, parse_address
from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.errors import CheckpointError, ConfigurationError, SnapshotNotFoundError
from checkpoint_sidecar.core.log import WarmStartChosen, WarmStartFinished
from checkpoint_sidecar.core.policy import VerifyLevel
from checkpoint_sidecar.core.selectors import LATEST
from checkpoint_sidecar.manage.changes import why_gone, why_unreadable
from checkpoint_sidecar.manage.stored_run import StoredRun
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.fsspec.storage_options import settings_from
from checkpoint_sidecar.store.opening import open_store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartFrom:
    """A snapshot of another run, at which the first attempt of a new run begins.

    Attributes:
        url: ``<url>``, ``<url>@latest``, ``<url>@best``, ``<url>@<step>`` or ``<url>@<id>``; or a file
            ``*.safetensors``, or the index of several, for the weights of the model. It is accessed like the new run.
            If it needs other settings: those, with a URL without a selector.
        part: Name of the only object to load, such as ``model``: all others start fresh, at step 0. Empty for all
            objects, with which training continues at the snapshot's step.
        selector: The snapshot, where ``url`` does not name it.
        filesystem: An fsspec filesystem that serves ``url``.
        storage_options: fsspec's options for ``url``.
    """

    url: str | StoreSettings
    part: str = ""
    selector: str | int = ""
    filesystem: Any = None
    storage_options: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, asked: str | StartFrom | None) -> StartFrom | None:
        """Return what was asked for; None for nothing.

        Raises:
            ConfigurationError: The address is invalid.
        """
        if not asked:
            return None
        found = cls(asked) if isinstance(asked, str) else asked
        _ = found.address
        return found

    @classmethod
    def of_environment(cls, env: RunEnvironment) -> StartFrom | None:
        """Return what the environment of an injected pod asks for; None for nothing."""
        if not env.start_from:
            return None
        folder = env.start_from_credentials_folder
        if not (env.start_from_endpoint or folder):
            return cls(env.start_from, env.start_from_part)
        # The own credentials are not for another endpoint.
        address = parse_address(env.start_from)
        settings = StoreSettings(
            address.url,
            endpoint=env.start_from_endpoint,
            region=env.start_from_region,
            addressing_style=env.start_from_addressing_style,
            credentials=Credentials.in_folder(folder) if folder else AMBIENT,
        )
        return cls(settings, env.start_from_part, address.selector)

    @property
    def address(self) -> RunAddress:
        """The run and the selector.

        Raises:
            ConfigurationError: The URL is invalid.
        """
        address = parse_address(self.url) if isinstance(self.url, str) else RunAddress(self.url.url)
        selector = str(self.selector) if self.selector != "" else address.selector
        if decisions.names_weights(address.url):
            return RunAddress(address.url)
        return RunAddress(address.url.rstrip("/"), selector or LATEST)

    def settings(self, own: StoreSettings) -> StoreSettings:
        """Return how to open the other run.

        Args:
            own: The settings of the new run.
        """
        if isinstance(self.url, StoreSettings):
            return settings_from(self.url, filesystem=self.filesystem, storage_options=self.storage_options)
        url = self.address.url
        if self.filesystem is not None or self.storage_options:
            return settings_from(url, filesystem=self.filesystem, storage_options=self.storage_options)
        return _like(own, url)


def source_settings(chosen: WarmStartChosen, start_from: StartFrom | None, own: StoreSettings) -> StoreSettings:
    """Return how to open the run in which the chosen snapshot is."""
    settings = own if start_from is None else start_from.settings(own)
    return settings if settings.url.rstrip("/") == chosen.url else _like(settings, chosen.url)


def _like(settings: StoreSettings, url: str) -> StoreSettings:
    """Return the same access to another URL, or the ambient identity at a store of another kind."""
    same_kind = settings.url.partition("://")[0] == url.partition("://")[0]
    return replace(settings, url=url) if same_kind else settings_from(url)


def choose_warm_start(
    session: AttemptSession, start_from: StartFrom | None, own: StoreSettings
) -> WarmStartChosen | None:
    """Return the snapshot of another run at which this attempt begins, or None. The first start records the choice.

    Args:
        start_from: The request of this process; None if only the log says where the run begins.
        own: The settings of the new run.

    Raises:
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError: Nothing, or not one thing, fits the address.
        ConfigurationError: The address is invalid, or names this very run.
        FencedError: A later attempt started.
        LogError, StoreError: One of the two runs cannot be read or written.
    """
    run = session.log.run
    if start_from is not None and decisions.may_start_warm(run, session.attempt):
        asked = str(start_from.address)
        if not decisions.answers(run.warm_start, asked, start_from.part):
            if decisions.names_weights(start_from.address.url):
                found = WarmStartChosen(asked, start_from.address.url, part=start_from.part)
            else:
                source = StoredRun(open_store(start_from.settings(own)))
                found = find_start(source, start_from.address.selector, asked=asked, part=start_from.part, url=own.url)
            session.log.append(lambda run: decisions.choose_for(run, session.attempt, found))
    return decisions.warm_start_of(session.log.run, session.attempt)


def find_start(source: StoredRun, selector: str | int, *, asked: str, part: str, url: str) -> WarmStartChosen:
    """Return the choice of a snapshot of another run.

    Args:
        asked: The words of the request.
        url: The new run's.

    Raises:
        ConfigurationError: The other run is the new one.
        RunNotFoundError, SnapshotNotFoundError, AmbiguousSelectorError, LogError, StoreError: See ``StoredRun.find``.
    """
    if source.url.rstrip("/") == url.rstrip("/"):
        raise ConfigurationError(
            "start the run",
            url,
            "it cannot begin at a snapshot of its own",
            "Name another run, or roll this one back to an older snapshot.",
        )
    snapshot = source.find(selector)
    if cause := why_unreadable(source.state, snapshot.id):
        raise _gone(source, snapshot.id, cause)
    return WarmStartChosen(asked, source.url.rstrip("/"), snapshot.id, snapshot.step, part)


def source_candidate(chosen: WarmStartChosen, source: StoredRun, *, verify: VerifyLevel) -> Candidate:
    """Read the description of the chosen snapshot.

    Raises:
        SnapshotNotFoundError, RunNotFoundError: It was deleted, or its run was.
        CorruptSnapshotError: Its manifest or metadata is damaged.
        LogError, StoreError: The other run cannot be read.
    """
    snapshot = source.find(chosen.snapshot)
    if cause := why_unreadable(source.state, snapshot.id):
        raise _gone(source, snapshot.id, cause)
    try:
        return candidate_of(source.store, snapshot, verify=verify)
    except CheckpointError as error:
        raise deleted(source, snapshot.id) or error from None


def deleted(source: StoredRun, snapshot: str) -> SnapshotNotFoundError | None:
    """Return the error to raise if the snapshot was deleted while it was read, or None."""
    cause = why_gone(source.refresh, snapshot)
    return _gone(source, snapshot, cause) if cause else None


def _gone(source: StoredRun, snapshot: str, cause: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        "start from",
        f"{source.url}@{snapshot}",
        cause,
        "Nothing was committed in the new run yet: name another snapshot in start_from (spec.restore.startFrom), and "
        "hold it until the first commit.",
    )


def record_warm_start(session: AttemptSession, outcome: WarmStartFinished) -> None:
    """Write the outcome into the new run's log, and log it.

    Raises:
        FencedError: A later attempt started.
    """
    session.log.append(lambda run: decisions.finish(run, outcome))
    if not outcome.restored:
        return
    source = decisions.address_of(outcome)
    if outcome.part:
        logger.info("began with %s of %s, at step 0", outcome.part, source)
        if outcome.missing:
            logger.info("not loaded, starting fresh: %s", ", ".join(outcome.missing))
    else:
        logger.info("began at step %d of %s", outcome.step, source)
        if outcome.missing:
            logger.warning("not in %s, left as they are: %s", source, ", ".join(outcome.missing))
    if outcome.unused:
        logger.info("in %s, and not used: %s", source, ", ".join(outcome.unused))
