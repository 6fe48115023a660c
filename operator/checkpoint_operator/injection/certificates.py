"""Makes certificates for the webhook, and reads those that a Secret holds."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from checkpoint_operator.injection.rotation import BACKDATED, Step, Validity, next_step

_CURRENT, _UPCOMING = ("tls.crt", "tls.key"), ("next.crt", "next.key")
_AUTHORITIES = "ca.crt"
_COMMON_NAME = "checkpoint-operator webhook"


@dataclass(frozen=True, slots=True, repr=False)
class KeyPair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Stored:
    """What the Secret holds.

    Attributes:
        current: The pair to serve, if any.
        upcoming: The next one, if any.
        authorities: All that API servers have to trust, in PEM.
    """

    current: KeyPair | None = None
    upcoming: KeyPair | None = None
    authorities: bytes = b""

    @classmethod
    def parse(cls, data: Mapping[str, bytes]) -> Stored:
        """Read the data of the Secret. What is incomplete counts as absent."""
        return cls(_pair(data, _CURRENT), _pair(data, _UPCOMING), data.get(_AUTHORITIES, b""))

    def data(self) -> dict[str, bytes | None]:
        """Return the data of the Secret; None for what must not be there."""
        found: dict[str, bytes | None] = {_AUTHORITIES: self.authorities}
        for names, pair in ((_CURRENT, self.current), (_UPCOMING, self.upcoming)):
            found |= zip(names, (pair.certificate, pair.key) if pair else (None, None), strict=True)
        return found


def advanced(stored: Stored, host: str, lifetime: dt.timedelta, now: dt.datetime) -> Stored:
    """Return what the Secret should hold now, as ``rotation`` decides; the same if nothing is due."""
    current, upcoming = (_validity(pair, host, stored.authorities) for pair in (stored.current, stored.upcoming))
    step = next_step(current, upcoming, now)
    if step is Step.KEEP:
        return stored
    if step is Step.SWITCH:
        return replace(stored, current=stored.upcoming, upcoming=None, authorities=_alive(stored.authorities, now))
    pair, authority = _made(host, lifetime, now)
    authorities = _alive(stored.authorities, now) + authority
    if step is Step.PREPARE:
        return replace(stored, upcoming=pair, authorities=authorities)
    return Stored(pair, None, authorities)


def _made(host: str, lifetime: dt.timedelta, now: dt.datetime) -> tuple[KeyPair, bytes]:
    """Return a pair for a server, and the certificate of the authority that signed it."""
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    # A name of its own, because of several authorities with one name, clients try the first.
    name = f"{_COMMON_NAME} {now:%Y-%m-%d %H:%M:%S.%f}"
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identity = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())

    def draft(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        builder = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        return builder.not_valid_before(now - BACKDATED).not_valid_after(now + lifetime)

    authority = (
        draft(issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(identity, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        draft(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _COMMON_NAME)]), key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identity), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return KeyPair(_pem(certificate), private), _pem(authority)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _validity(pair: KeyPair | None, host: str, authorities: bytes) -> Validity | None:
    """When a pair may be served; None if it is unreadable, of another server, or of no authority that is known."""
    if pair is None:
        return None
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, password=None)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.DNSName)
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return None
    known = any(_signed(certificate, authority) for authority in _parsed(authorities))
    if host not in hosts or key.public_key() != certificate.public_key() or not known:
        return None
    return Validity(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _alive(authorities: bytes, now: dt.datetime) -> bytes:
    """Those that have not expired."""
    return b"".join(_pem(one) for one in _parsed(authorities) if one.not_valid_after_utc > now)


def _parsed(authorities: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(authorities) if authorities else []
    except ValueError:
        return []


def _pair(data: Mapping[str, bytes], names: tuple[str, str]) -> KeyPair | None:
    certificate, key = (data.get(name, b"") for name in names)
    return KeyPair(certificate, key) if certificate and key else None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
