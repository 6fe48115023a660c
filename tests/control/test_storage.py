"""Which stores a Checkpoint may open, and what errors mean for it."""

from __future__ import annotations

from typing import Any

import pytest

from checkpoint_operator.gather.places import Server, server_of
from checkpoint_operator.gather.prefixes import ClaimState, Prefixes, claim_state
from checkpoint_operator.gather.run_store import Rules, StorageFaultError, fault_from, settings_for
from checkpoint_operator.model.observed import Key
from checkpoint_sidecar.core import errors
from checkpoint_sidecar.store.access import Credentials, StoreSettings
from support.builders import OWNER
from support.observations import spec_of

KEY = Key("team-a", "run")
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key"}
ALLOWED = Rules(ambient=(("team-a", "s3://training/team-a"),))


def settings(secret: dict[str, str] | None = None, rules: Rules = ALLOWED, **storage: Any) -> StoreSettings:
    return settings_for(KEY, spec_of(storage=storage).storage, secret, rules)


def refusal(secret: dict[str, str] | None = None, rules: Rules = ALLOWED, **storage: Any) -> str:
    with pytest.raises(StorageFaultError) as caught:
        settings(secret, rules, **storage)
    assert caught.value.fault.stalled
    return caught.value.fault.reason


def test_the_keys_of_the_secret_open_any_url_at_any_endpoint() -> None:
    opened = settings(KEYS, Rules(), url="s3://anything/run/", endpoint="http://evil", region="x")
    assert opened == StoreSettings(
        "s3://anything/run", endpoint="http://evil", region="x", credentials=Credentials.of(KEYS)
    )


@pytest.mark.parametrize("url", ["s3://training/team-a", "s3://training/team-a/run/7"])
def test_the_operators_own_identity_opens_what_is_allowed(url: str) -> None:
    assert settings(url=url).credentials.ambient


@pytest.mark.parametrize(
    "storage",
    [
        pytest.param({"url": "s3://training/team-ab/run"}, id="a prefix that only starts the same"),
        pytest.param({"url": "s3://training"}, id="the parent of an allowed prefix"),
        pytest.param({"url": "gs://training/team-a"}, id="another service"),
        pytest.param({"url": "s3://training/team-a", "endpoint": "https://elsewhere"}, id="an endpoint of the user's"),
    ],
)
def test_the_operators_own_identity_is_never_used_for(storage: dict[str, Any]) -> None:
    assert refusal(**storage) == "AmbientNotAllowed"


def test_what_is_allowed_in_one_namespace_is_not_in_another() -> None:
    assert refusal(rules=Rules(ambient=(("team-b", "s3://training/team-a"),)), url="s3://training/team-a") == (
        "AmbientNotAllowed"
    )


ANYWHERE = Rules(ambient=(("*", "s3://training/{namespace}/runs"), ("*", "gs://ckpt-{namespace}")))


@pytest.mark.parametrize("url", ["s3://training/team-a/runs", "s3://training/team-a/runs/7", "gs://ckpt-team-a/run"])
def test_every_namespace_has_its_own_part_of_a_prefix_that_is_allowed_to_all(url: str) -> None:
    assert settings(rules=ANYWHERE, url=url).credentials.ambient


@pytest.mark.parametrize(
    "url",
    ["s3://training/team-b/runs/7", "s3://training/team-a", "s3://training/team-a/runs-2", "gs://ckpt-team-ab/run"],
)
def test_no_namespace_has_anothers_part(url: str) -> None:
    assert refusal(rules=ANYWHERE, url=url) == "AmbientNotAllowed"


def test_a_braced_word_in_a_users_url_is_no_namespace() -> None:
    assert refusal(rules=ANYWHERE, url="s3://training/{namespace}/runs") == "InvalidSpec"


def test_local_files_need_the_administrators_word() -> None:
    assert refusal(url="file:///data/run") == "FileUrlNotAllowed"
    assert settings(rules=Rules(file_urls=True), url="file:///data/run") == StoreSettings("file:///data/run")


@pytest.mark.parametrize("url", ["ftp://host/run", "s3://bucket/a/../b", "s3://", "simplecache::s3://bucket/run"])
def test_a_url_that_slipped_through_the_schema_is_an_invalid_spec(url: str) -> None:
    assert refusal(KEYS, url=url) == "InvalidSpec"


@pytest.mark.parametrize(
    ("kind", "reason", "stalled"),
    [
        (errors.AccessDeniedError, "AccessDenied", False),
        (errors.BucketNotFoundError, "BucketNotFound", False),
        (errors.NoConditionalWriteError, "NoConditionalWrite", True),
        (errors.UnknownOutcomeError, "StoreUnavailable", False),
        (errors.StoreError, "StoreUnavailable", False),
        (errors.LogError, "LogUnreadable", True),
        (errors.IncompatibleSnapshotError, "UpgradeRequired", True),
        (errors.ConfigurationError, "InvalidCredentials", False),
    ],
)
def test_errors_are_distinguished_by_the_side_that_must_act(
    kind: type[errors.CheckpointError], reason: str, stalled: bool
) -> None:
    fault = fault_from(kind("read", "s3://bucket", "no", "Do this."))
    assert (fault.reason, fault.stalled) == (reason, stalled)
    assert "Do this." in fault.message


# Overlapping prefixes

OLD, YOUNG, OTHER = Key("a", "old"), Key("b", "young"), Key("c", "other")


HERE, THERE = Server("s3.internal:9000"), Server("evil.example:80")


def wishes(
    old: str,
    young: str,
    *,
    old_stands: ClaimState = ClaimState.NEW,
    young_stands: ClaimState = ClaimState.NEW,
    old_server: Server | None = HERE,
) -> Prefixes:
    prefixes = Prefixes()
    # In the order in which they are seen, which is not that of their ages.
    prefixes.note(YOUNG, url=young, server=HERE, state=young_stands, created_at="2026-01-01T00:00:02Z", uid="1")
    prefixes.note(OLD, url=old, server=old_server, state=old_stands, created_at="2026-01-01T00:00:01Z", uid="2")
    prefixes.note(
        OTHER,
        url="s3://elsewhere/run",
        server=HERE,
        state=ClaimState.HOLDER,
        created_at="2026-01-01T00:00:00Z",
        uid="3",
    )
    return prefixes


@pytest.mark.parametrize(
    ("old", "young"), [("s3://b/run", "s3://b/run/inner"), ("s3://b/run/inner", "s3://b/run")], ids=["inside", "around"]
)
@pytest.mark.parametrize("stand", [ClaimState.HOLDER, ClaimState.NEW], ids=["both hold it", "both are new"])
def test_of_overlapping_prefixes_the_older_checkpoint_has_it(old: str, young: str, stand: ClaimState) -> None:
    prefixes = wishes(old, young, old_stands=stand, young_stands=stand)
    assert prefixes.rival(YOUNG) == OLD
    assert prefixes.rival(OLD) is None


def test_a_run_that_holds_its_prefix_keeps_it_against_an_older_checkpoint_that_never_had_one() -> None:
    prefixes = wishes("s3://b", "s3://b/run", young_stands=ClaimState.HOLDER)
    assert prefixes.rival(YOUNG) is None
    assert prefixes.rival(OLD) == YOUNG


@pytest.mark.parametrize("young", [ClaimState.NEW, ClaimState.REFUSED], ids=["new ones", "other refused ones"])
def test_a_checkpoint_that_cannot_use_a_whole_bucket_does_not_keep_others_out(young: ClaimState) -> None:
    assert wishes("s3://b", "s3://b/run", old_stands=ClaimState.REFUSED, young_stands=young).rival(YOUNG) is None


@pytest.mark.parametrize(
    ("status", "stands"),
    [
        pytest.param({}, ClaimState.NEW, id="nothing was reported yet"),
        pytest.param({"conditions": [{}], "claimedBy": str(OWNER)}, ClaimState.HOLDER, id="the log names it"),
        pytest.param({"conditions": [{}], "claimedBy": "c/n/other"}, ClaimState.REFUSED, id="the log names another"),
        pytest.param({"conditions": [{}]}, ClaimState.REFUSED, id="its log could not be read"),
    ],
)
def test_how_a_checkpoint_stands_is_read_from_its_status(status: dict[str, Any], stands: ClaimState) -> None:
    assert claim_state(status, OWNER) is stands


def test_equal_and_separate_prefixes_have_no_rival() -> None:
    assert wishes("s3://b/run", "s3://b/run").rival(YOUNG) is None
    assert wishes("s3://b/run", "s3://b/run-2").rival(YOUNG) is None


def test_when_the_older_one_goes_the_others_are_woken() -> None:
    prefixes = wishes("s3://b/run", "s3://b/run/inner")
    assert prefixes.forget(OLD) == (YOUNG,)
    assert prefixes.rival(YOUNG) is None
    assert prefixes.forget(OLD) == ()


def test_a_store_of_ones_own_takes_no_prefix_from_others() -> None:
    for stands in ClaimState:
        prefixes = wishes("s3://b", "s3://b/run", old_stands=stands, old_server=THERE)
        assert prefixes.rival(YOUNG) is None
        assert prefixes.to_locate(YOUNG) == ()


def test_a_server_that_only_a_secret_names_is_found_out_before_it_counts() -> None:
    prefixes = wishes("gs://b", "gs://b/run", old_stands=ClaimState.HOLDER, old_server=None)
    assert prefixes.rival(YOUNG) is None
    assert prefixes.to_locate(YOUNG) == (OLD,)
    prefixes.locate(OLD, HERE)
    assert prefixes.rival(YOUNG) == OLD
    prefixes.note(OLD, url="gs://b", server=None, state=ClaimState.HOLDER, created_at="2026-01-01T00:00:01Z", uid="2")
    assert prefixes.rival(YOUNG) == OLD, "what was known stays known"


GOOGLE = "GOOGLE_APPLICATION_CREDENTIALS_JSON"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"url": "s3://b"}, {"url": "s3://b", "endpoint": "https://s3.eu-west-1.amazonaws.com"}, True),
        ({"url": "s3://b"}, {"url": "s3://b", "endpoint": "https://s3.amazonaws.com.evil.example"}, False),
        ({"url": "s3://b"}, {"url": "s3://b", "endpoint": "https://b.vpce-1a.s3.eu-west-1.vpce.amazonaws.com"}, True),
        ({"url": "s3://b"}, {"url": "s3://b", "endpoint": "http://ec2-1-2-3-4.compute-1.amazonaws.com"}, False),
        ({"url": "s3://b"}, {"url": "s3://b", "endpoint": "https://s3-1.eu-west-1.elb.amazonaws.com"}, False),
        ({"endpoint": "http://S3.internal:80/"}, {"endpoint": "http://s3.internal"}, True),
        ({"endpoint": "http://s3.internal"}, {"endpoint": "http://s3.internal:9000"}, False),
        ({"url": "gs://b"}, {"url": "gs://b", GOOGLE: '{"gcs_base_url": "http://evil.example"}'}, False),
        ({"url": "gs://b"}, {"url": "gs://b", GOOGLE: '{"type": "service_account"}'}, True),
        (
            {"url": "az://b", "AZURE_STORAGE_ACCOUNT_NAME": "one"},
            {"url": "az://b", "AZURE_STORAGE_ACCOUNT_NAME": "two"},
            False,
        ),
    ],
    ids=[
        "an alias of Amazon",
        "not one",
        "a gateway",
        "a machine",
        "a load balancer",
        "one host",
        "another port",
        "a server of one's own",
        "Google",
        "accounts",
    ],
)
def test_which_server_settings_lead_to(one: dict[str, str], other: dict[str, str], same: bool) -> None:
    def server(options: dict[str, str]) -> Server:
        secret = {name: value for name, value in options.items() if name.isupper()}
        url, endpoint = options.get("url", "s3://b"), options.get("endpoint", "")
        return server_of(StoreSettings(url, endpoint, credentials=Credentials.of(secret)))

    assert (server(one) == server(other)) is same
