"""Every fault that networks and stores have in stock, in every verb, through both adapters.

The quick profile injects them in front of moto. With ``CHECKPOINT_FAULTS=long`` they are injected in front of SeaweedFS
too, at every stage of an upload, and five times each, because retries are jittered and parts are sent concurrently.
The results are left in ``build/faults.json``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from checkpoint_sidecar.core.errors import StoreError
from checkpoint_sidecar.store.access import AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, Credentials
from checkpoint_sidecar.store.base import Store
from checkpoint_sidecar.store.common.calls import Timeouts
from checkpoint_sidecar.store.common.parts import write_object
from checkpoint_sidecar.store.common.ranges import read_range
from doubles.faulty_server import Answer, Effect, Fault
from support.s3servers import LONG, SMALLEST_PART, Route

ALWAYS = 10_000
TURNS = range(5 if LONG else 1)

pytestmark = pytest.mark.store

DATA = bytes(range(256)) * 8


@dataclass(frozen=True)
class Verb:
    """One verb, on objects under a folder of its own.

    Attributes:
        request: Method of the request that the faults befall, and a text in its path.
        prepare: What must be there before.
        use: Calls it.
        done: Whether exactly that has happened which it is for.
    """

    request: tuple[str, str]
    prepare: Callable[[Store, str], object]
    use: Callable[[Store, str], object]
    done: Callable[[Store, str, object], bool]


def _nothing(_store: Store, _folder: str) -> None:
    pass


def _upload(store: Store, folder: str) -> None:
    write_object(store, f"{folder}object", bytes(SMALLEST_PART) + DATA)


def _holds(store: Store, folder: str, data: bytes) -> bool:
    return store.get(f"{folder}object", max_bytes=2 * SMALLEST_PART).data == data


def _names(folder: str) -> list[str]:
    return [f"{folder}{number}" for number in range(5)]


def _put_several(store: Store, folder: str) -> None:
    for name in _names(folder):
        store.put(name, b"data")


VERBS = {
    "put": Verb(
        ("PUT", "object"),
        _nothing,
        lambda store, folder: store.put(f"{folder}object", DATA),
        lambda store, folder, _: _holds(store, folder, DATA),
    ),
    "put_if_absent": Verb(
        ("PUT", "object"),
        _nothing,
        lambda store, folder: store.put_if_absent(f"{folder}object", DATA),
        lambda store, folder, _: _holds(store, folder, DATA),
    ),
    "list": Verb(
        ("GET", "list-type"),
        _put_several,
        lambda store, folder: [info.key for info in store.list(folder)],
        lambda _store, folder, found: found == _names(folder),
    ),
    "read_into": Verb(
        ("GET", "object"),
        lambda store, folder: store.put(f"{folder}object", DATA),
        lambda store, folder: read_range(store, f"{folder}object", 100, 1000),
        lambda _store, _folder, found: found == DATA[100:1100],
    ),
    "upload": Verb(
        ("PUT", "partNumber=1"),
        _nothing,
        _upload,
        lambda store, folder, _: _holds(store, folder, bytes(SMALLEST_PART) + DATA),
    ),
    "delete": Verb(
        ("POST", "delete"),
        _put_several,
        lambda store, folder: store.delete(_names(folder)),
        lambda store, folder, _: list(store.list(folder)) == [],
    ),
}

DONE = "done"
UNKNOWN = "UnknownOutcomeError"
FAILED = "StoreError"
DENIED = "AccessDeniedError"
REFUSED = "RequestRefusedError"
NOT_DELETED = "DeletionRefusedError"
OTHER = "not seen by the store"

# Columns: what comes of it in put, put_if_absent, list, read_into, upload, delete; None where it does not exist.
Row = tuple[str, list[Effect | Answer], int, tuple[str | None, ...]]
ONCE_REPEATED = (DONE, UNKNOWN, DONE, DONE, DONE, DONE)
GIVEN_UP = (UNKNOWN, UNKNOWN, FAILED, FAILED, UNKNOWN, FAILED)
FAULTS: list[Row] = [
    ("500 once", [(500, "InternalError")], 1, ONCE_REPEATED),
    ("503 SlowDown, a burst", [(503, "SlowDown")], 3, ONCE_REPEATED),
    ("503 SlowDown without end", [(503, "SlowDown")], ALWAYS, GIVEN_UP),
    ("409 conflict", [(409, "ConditionalRequestConflict")], 1, ONCE_REPEATED),
    (
        "412 precondition failed",
        [(412, "PreconditionFailed")],
        1,
        (REFUSED, "ObjectExistsError", REFUSED, REFUSED, REFUSED, NOT_DELETED),
    ),
    ("connection reset in the middle", ["reset the connection"], 1, ONCE_REPEATED),
    ("request lost", ["lose the request"], 1, ONCE_REPEATED),
    ("black hole", ["keep silent"], 1, ONCE_REPEATED),
    ("black hole without end", ["keep silent"], ALWAYS, GIVEN_UP),
    ("reply lost after success", ["lose the reply"], 1, ONCE_REPEATED),
    ("reply cut short", ["cut the reply"], 1, (None, None, DONE, DONE, None, DONE)),
    ("bit flipped", ["flip a bit of the data"], 1, (OTHER, OTHER, DONE, OTHER, OTHER, DONE)),
    ("listing out of date", ["answer as before"], ALWAYS, (None, None, OTHER, None, None, None)),
    ("credentials expired", [(403, "ExpiredToken")], ALWAYS, (*(DENIED,) * 5, NOT_DELETED)),
    ("wrong clock", [(403, "RequestTimeTooSkewed")], ALWAYS, (*(DENIED,) * 5, NOT_DELETED)),
]
"""Name, what befalls how many requests in turn, and what comes of it."""


def cases() -> list[Any]:
    return list(_cases())


def _cases() -> Iterator[Any]:
    for name, effects, times, outcomes in FAULTS:
        for verb, outcome in zip(VERBS, outcomes, strict=True):
            if outcome:
                yield pytest.param(name, verb, effects, times, outcome, id=f"{name}-{verb}")


def outcome_of(verb: Verb, store: Store, folder: str, route: Route) -> str:
    try:
        found = verb.use(store, folder)
    except StoreError as error:
        return type(error).__name__
    finally:
        route.proxy.faults.clear()
    return DONE if verb.done(route.patient, folder, found) else OTHER


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(("fault", "verb", "effects", "times", "expected"), cases())
def test_a_fault_ends_as_it_should(
    fault: str,
    verb: str,
    effects: list[Effect | Answer],
    times: int,
    expected: str,
    route: Route,
    folder: str,
    report_fault: Callable[..., None],
    turn: int,
) -> None:
    tried, lasts = VERBS[verb], times == ALWAYS or "keep silent" in effects
    if fault == "listing out of date":
        list(route.patient.list(folder))
    tried.prepare(route.patient, folder)
    route.proxy.faults += [Fault(*tried.request, effect, times) for effect in effects]

    outcome = outcome_of(tried, route.hasty if lasts else route.patient, folder, route)

    report_fault(fault=fault, verb=verb, route=route, outcome=outcome)
    assert outcome == expected
    if verb == "upload":
        assert route.server.open_uploads(f"{route.patient.url}/{folder}") == []
        assert (route.patient.stat(f"{folder}object") is not None) == (outcome in (DONE, OTHER))


STAGES = {"start": ("POST", "uploads"), "last part": ("PUT", "partNumber=2"), "completion": ("POST", "uploadId=")}
EFFECTS: list[Effect | Answer] = [
    (503, "SlowDown"),
    "reset the connection",
    "keep silent",
    "lose the reply",
    "cut the reply",
]
QUICK = {
    ("start", "lose the reply"),
    ("last part", "reset the connection"),
    ("completion", "lose the reply"),
    ("completion", "cut the reply"),
    ("completion", "keep silent"),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(
    ("stage", "effect"),
    [(stage, effect) for stage in STAGES for effect in EFFECTS if LONG or (stage, effect) in QUICK],
    ids=str,
)
def test_every_stage_of_an_upload_survives_a_fault(
    stage: str,
    effect: Effect | Answer,
    route: Route,
    folder: str,
    report_fault: Callable[..., None],
    turn: int,
) -> None:
    route.proxy.faults.append(Fault(*STAGES[stage], effect))

    outcome = outcome_of(VERBS["upload"], route.hasty if effect == "keep silent" else route.patient, folder, route)

    report_fault(fault=f"upload, {stage}: {effect}", verb="upload", route=route, outcome=outcome)
    assert outcome == DONE


@pytest.mark.parametrize(("times", "expected"), [(2, DONE), (ALWAYS, FAILED)], ids=["for a while", "without end"])
def test_a_second_page_that_fails_never_makes_a_short_listing(
    times: int, expected: str, route: Route, folder: str, report_fault: Callable[..., None]
) -> None:
    if route.server.name != "moto":
        pytest.skip("the server would refuse a request that was changed on the way")
    verb = VERBS["list"]
    verb.prepare(route.patient, folder)
    route.proxy.faults += [
        Fault("GET", "continuation-token", (503, "SlowDown"), times),
        Fault("GET", "list-type", "answer in small pages", ALWAYS),
    ]

    outcome = outcome_of(verb, route.hasty if times == ALWAYS else route.patient, folder, route)

    report_fault(fault=f"second page fails {times} times", verb="list", route=route, outcome=outcome)
    assert outcome == expected


def write_keys(folder: Path, key_id: str, secret: str) -> None:
    (folder / AWS_ACCESS_KEY_ID).write_text(key_id)
    (folder / AWS_SECRET_ACCESS_KEY).write_text(secret)


@pytest.mark.parametrize("name", VERBS)
def test_credentials_that_expire_in_the_middle_are_replaced_by_those_in_the_folder(
    name: str,
    route: Route,
    folder: str,
    tmp_path: Path,
    report_fault: Callable[..., None],
) -> None:
    if route.server.name != "moto":
        pytest.skip("the server knows one key only")
    write_keys(tmp_path, "old", "secret")
    settings = route.server.settings(endpoint=route.proxy.endpoint, credentials=Credentials.in_folder(tmp_path))
    store = type(route.patient)(settings)
    verb = VERBS[name]
    verb.prepare(store, folder)

    def rotate() -> None:
        for method in ("GET", "PUT", "POST"):
            route.proxy.faults.append(Fault(method, "", (403, "ExpiredToken"), ALWAYS, signed_by="old"))
        write_keys(tmp_path, "new", "secret")

    if name == "upload":
        with store.upload(f"{folder}object", SMALLEST_PART + len(DATA)) as upload:
            upload.write_part(0, [bytes(SMALLEST_PART)])
            until(lambda: route.proxy.count("PUT", "partNumber=1") == 1)
            rotate()
            upload.write_part(1, [DATA])
        outcome = DONE if verb.done(store, folder, None) else OTHER
    else:
        rotate()
        outcome = DONE if verb.done(store, folder, verb.use(store, folder)) else OTHER

    report_fault(fault="credentials expired and rotated", verb=name, route=route, outcome=outcome)
    assert outcome == DONE


def until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("verb", ["upload", "put"])
def test_a_slow_link_is_no_silent_store(
    verb: str, route: Route, folder: str, report_fault: Callable[..., None]
) -> None:
    settings = route.server.settings(endpoint=route.proxy.endpoint)
    store = type(route.patient)(settings, timeouts=Timeouts(answer_seconds=0.5))
    wanted = "partNumber=1" if verb == "upload" else "object"
    route.proxy.faults.append(Fault("PUT", wanted, "read slowly"))

    if verb == "upload":
        VERBS["upload"].use(store, folder)
    else:
        store.put(f"{folder}object", bytes(SMALLEST_PART))

    report_fault(fault="slow link", verb=verb, route=route, outcome=DONE)
    assert route.proxy.count("PUT", wanted) == 1
