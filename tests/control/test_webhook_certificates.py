"""The certificates that the webhook makes for itself: always one to serve that the API servers trust by then."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from checkpoint_operator.injection.certificates import KeyPair, Stored, advanced
from checkpoint_operator.injection.rotation import BACKDATED, Step, Validity, next_step

HOST = "webhook.operators.svc"
START = dt.datetime(2026, 11, 29, tzinfo=dt.UTC)
DAY, HOUR, MINUTE = dt.timedelta(days=1), dt.timedelta(hours=1), dt.timedelta(minutes=1)
LIFETIME = 90 * DAY


def made(age: dt.timedelta) -> Validity:
    """Of a certificate that was made so long before START."""
    return Validity(START - age - BACKDATED, START - age + LIFETIME)


@pytest.mark.parametrize(
    ("current", "upcoming", "step"),
    [
        (None, None, Step.REPLACE),
        (made(91 * DAY), None, Step.REPLACE),
        (made(-DAY), None, Step.REPLACE),
        (made(59 * DAY), None, Step.KEEP),
        (made(61 * DAY), None, Step.PREPARE),
        (made(61 * DAY), made(59 * MINUTE), Step.KEEP),
        (made(61 * DAY), made(61 * MINUTE), Step.SWITCH),
        (made(91 * DAY), made(MINUTE), Step.SWITCH),
        (None, made(MINUTE), Step.SWITCH),
        (None, made(91 * DAY), Step.REPLACE),
        (made(61 * DAY), made(91 * DAY), Step.PREPARE),
    ],
)
def test_what_comes_next_depends_on_what_there_is(
    current: Validity | None, upcoming: Validity | None, step: Step
) -> None:
    assert next_step(current, upcoming, START) is step


def trusted(pair: KeyPair | None, authorities: bytes, now: dt.datetime, host: str = HOST) -> bool:
    """Whether a client that trusts these authorities accepts a server with this pair."""
    assert pair is not None
    store = Store(x509.load_pem_x509_certificates(authorities))
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    try:
        PolicyBuilder().store(store).time(now).build_server_verifier(x509.DNSName(host)).verify(certificate, [])
    except VerificationError:
        return False
    return True


def test_for_two_years_every_client_trusts_what_is_served_also_with_an_earlier_list_and_the_other_way_around() -> None:
    """API servers learn the authorities, and the other replica the certificate, some time after they were stored."""
    stored = advanced(Stored(), HOST, LIFETIME, START)
    past, now = [stored], START
    seen = set()
    while now < START + 730 * DAY:
        now += 10 * MINUTE if stored.upcoming else 12 * HOUR
        stored = advanced(stored, HOST, LIFETIME, now)
        past = [*past[-3:], stored]
        for earlier in past:
            assert trusted(stored.current, earlier.authorities, now)
            assert trusted(earlier.current, stored.authorities, now)
        seen.add(stored.current)
        assert len(x509.load_pem_x509_certificates(stored.authorities)) <= 3
    assert len(seen) == 13


def test_a_client_of_another_name_or_with_another_authority_does_not_trust_it() -> None:
    stored, other = (advanced(Stored(), HOST, LIFETIME, START) for _ in range(2))
    assert not trusted(stored.current, stored.authorities, START, "other.operators.svc")
    assert not trusted(stored.current, other.authorities, START)


def test_nothing_that_is_stored_can_sign() -> None:
    stored = advanced(advanced(Stored(), HOST, LIFETIME, START), HOST, LIFETIME, START + 61 * DAY)
    authorities = [one.public_key() for one in x509.load_pem_x509_certificates(stored.authorities)]
    pairs = [pair for pair in (stored.current, stored.upcoming) if pair]
    keys = [serialization.load_pem_private_key(pair.key, None).public_key() for pair in pairs]
    assert (len(authorities), len(keys)) == (2, 2)
    assert not [key for key in keys if key in authorities]


WHOLE = advanced(Stored(), HOST, LIFETIME, START)
OTHER = advanced(Stored(), HOST, LIFETIME, START)
assert WHOLE.current is not None
assert OTHER.current is not None


@pytest.mark.parametrize(
    "damaged",
    [
        replace(WHOLE, current=None),
        replace(WHOLE, current=KeyPair(b"no certificate", WHOLE.current.key)),
        replace(WHOLE, current=KeyPair(WHOLE.current.certificate, b"no key")),
        replace(WHOLE, current=KeyPair(WHOLE.current.certificate, OTHER.current.key)),
        replace(WHOLE, current=OTHER.current),
        replace(WHOLE, authorities=b""),
        replace(WHOLE, authorities=b"no certificates"),
        advanced(Stored(), "other.operators.svc", LIFETIME, START),
    ],
    ids=["no pair", "certificate", "key", "other key", "other authority", "no list", "list", "other host"],
)
def test_what_cannot_be_served_is_replaced_at_once(damaged: Stored) -> None:
    found = advanced(damaged, HOST, LIFETIME, START)
    assert found.current != damaged.current
    assert trusted(found.current, found.authorities, START)
    assert advanced(found, HOST, LIFETIME, START) == found


def test_the_data_of_a_secret_comes_back_as_it_was_written() -> None:
    prepared = advanced(WHOLE, HOST, LIFETIME, START + 61 * DAY)
    for stored in (Stored(), WHOLE, prepared):
        assert Stored.parse({name: value for name, value in stored.data().items() if value is not None}) == stored
    assert WHOLE.data()["next.key"] is None
    assert Stored.parse({"tls.crt": b"x"}) == Stored()
