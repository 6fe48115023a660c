"""Which stores have a client in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.common.calls import DEFAULT_TIMEOUTS, Timeouts
from checkpoint_sidecar.store.common.shared import SharedClients

KEYS = {"AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "secret"}
RUN = StoreSettings("s3://bucket/team/run", credentials=Credentials.of(KEYS))


class Client:
    def __init__(self, settings: StoreSettings, timeouts: Timeouts, values: Mapping[str, str]) -> None:
        self.url, self.timeouts, self.values = settings.url, timeouts, values


@pytest.fixture
def clients() -> SharedClients[Client]:
    return SharedClients(Client)


def test_runs_of_one_bucket_have_their_client_in_common(clients: SharedClients[Client]) -> None:
    one = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    assert clients.get(replace(RUN, url="s3://bucket/other"), DEFAULT_TIMEOUTS, dict(KEYS)) is one
    assert one.url == "s3://bucket"


@pytest.mark.parametrize(
    "other",
    [
        replace(RUN, url="s3://bucket-2/team/run"),
        replace(RUN, url="gs://bucket/team/run"),
        replace(RUN, endpoint="https://s3.example.com"),
        replace(RUN, region="eu-west-1"),
        replace(RUN, addressing_style="Path"),
        replace(RUN, credentials=AMBIENT),
        replace(RUN, credentials=Credentials.in_folder("/keys")),
    ],
    ids=repr,
)
def test_another_place_or_identity_has_another(clients: SharedClients[Client], other: StoreSettings) -> None:
    one = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    assert clients.get(other, DEFAULT_TIMEOUTS, KEYS) is not one


def test_keys_that_rotated_and_another_environment_have_another(
    clients: SharedClients[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    two = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS | {"AWS_SESSION_TOKEN": "two"})
    monkeypatch.setenv("AWS_PROFILE", "other")
    three = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    assert len({id(one), id(two), id(three)}) == 3
    assert two.values["AWS_SESSION_TOKEN"] == "two"


def test_a_client_goes_with_the_last_store_that_has_it(clients: SharedClients[Client]) -> None:
    one = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    again = clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)
    made = id(one)
    del one
    assert id(clients.get(RUN, DEFAULT_TIMEOUTS, KEYS)) == made
    del again
    assert not clients._clients
