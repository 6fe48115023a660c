"""``python -m checkpoint_sidecar.conformance <url>``: whether a store keeps what checkpoints need, promise by promise.

Writes about 150 MB under ``<url>/_conformance/``, and removes it again. Exit status:

- 0: the store keeps every promise.
- 1: it breaks at least one. Do not use it.
- 2: it could not be asked about some: wrong arguments, no such bucket, a missing right, no connection.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import get_args

from checkpoint_sidecar.conformance.promises import CHECKS
from checkpoint_sidecar.conformance.suite import PromiseFinding, PromiseVerdict, examine
from checkpoint_sidecar.core.environment import AddressingStyle
from checkpoint_sidecar.core.errors import CheckpointError
from checkpoint_sidecar.store.access import AMBIENT, Credentials, StoreSettings
from checkpoint_sidecar.store.base import RestsOnFilesystem
from checkpoint_sidecar.store.fsspec.opening import is_foreign
from checkpoint_sidecar.store.fsspec.storage_options import settings_of
from checkpoint_sidecar.store.opening import Driver, open_store

KEPT, BROKEN, UNANSWERED = 0, 1, 2
_WORDS = {PromiseVerdict.KEPT: "kept", PromiseVerdict.BROKEN: "BROKEN", PromiseVerdict.UNANSWERED: "not asked"}
_INDENT = " " * 11


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print what they find, and return the exit status."""
    options = _parser().parse_args(arguments)
    settings = StoreSettings(
        url=options.url,
        endpoint=options.endpoint,
        region=options.region,
        addressing_style=options.addressing_style,
        credentials=Credentials.in_folder(options.credentials_folder) if options.credentials_folder else AMBIENT,
        server_side_encryption=options.server_side_encryption,
        kms_key_id=options.kms_key_id,
        requester_pays=options.requester_pays,
    )
    findings: list[PromiseFinding] = []
    try:
        if options.storage_options or is_foreign(options.url):
            settings = settings_of(options.url, options.storage_options)
        store, other = (open_store(settings, driver=options.driver) for _ in range(2))
        if isinstance(store, RestsOnFilesystem):
            other = store.another_client()
        if not options.json:
            print(f"{store.url} through {type(store).__name__}\n")
        for finding in examine(store, other, CHECKS):
            findings.append(finding)
            if not options.json:
                print("\n".join(_lines(finding)), flush=True)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return UNANSWERED
    if options.json:
        report = {"url": store.url, "adapter": type(store).__name__, "promises": [_fields(f) for f in findings]}
        print(json.dumps(report, indent=2))
    else:
        print(f"\n{_summary(findings)}")
    return _status(findings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m checkpoint_sidecar.conformance",
        description="Check whether an object store keeps what checkpoints need, promise by promise.",
        epilog="Exit status: 0 every promise is kept; 1 at least one is broken; 2 some could not be asked about.",
    )
    parser.add_argument(
        "url",
        help="s3://bucket/prefix, gs://..., az://..., a folder, or a URL that fsspec serves; cleaned up at the end",
    )
    parser.add_argument(
        "--storage-options", default={}, type=json.loads, help="fsspec's storage options, as a JSON object"
    )
    parser.add_argument("--endpoint", default="", help="URL of the service, for stores other than the cloud's own")
    parser.add_argument("--region", default="", help="region of the bucket")
    parser.add_argument(
        "--addressing-style",
        default="Auto",
        choices=get_args(AddressingStyle),
        help="whether the bucket stands in the path or in the host name; Auto: in the path with an endpoint",
    )
    parser.add_argument(
        "--server-side-encryption", default="", help="as in spec.storage: AES256, aws:kms, aws:kms:dsse"
    )
    parser.add_argument("--kms-key-id", default="", help="the key for aws:kms")
    parser.add_argument("--requester-pays", action="store_true", help="agree to pay for requests")
    parser.add_argument(
        "--credentials-folder",
        default="",
        help="a folder with one file per key, as a Secret is mounted; without it the environment's own identity",
    )
    parser.add_argument("--driver", default="auto", choices=get_args(Driver), help="the client library")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    return parser


def _lines(finding: PromiseFinding) -> list[str]:
    lines = [f"{_WORDS[finding.verdict]:<10} {finding.check.promise} ({finding.seconds:.1f} s)"]
    if finding.verdict is not PromiseVerdict.KEPT:
        lines += [f"{_INDENT}{finding.detail}", f"{_INDENT}Why it matters: {finding.check.why}"]
    return lines


def _fields(finding: PromiseFinding) -> dict[str, str | float]:
    return {
        "promise": finding.check.promise,
        "why": finding.check.why,
        "verdict": finding.verdict,
        "detail": finding.detail,
        "seconds": round(finding.seconds, 3),
    }


def _summary(findings: Sequence[PromiseFinding]) -> str:
    kept = sum(finding.verdict is PromiseVerdict.KEPT for finding in findings)
    ends = {
        KEPT: "This store is fit for checkpoints.",
        BROKEN: "Do not use this store for checkpoints.",
        UNANSWERED: "Nothing is known of the others: correct what is named above and ask again.",
    }
    return f"{kept} of {len(findings)} promises are kept. {ends[_status(findings)]}"


def _status(findings: Sequence[PromiseFinding]) -> int:
    verdicts = {finding.verdict for finding in findings}
    if PromiseVerdict.BROKEN in verdicts:
        return BROKEN
    return UNANSWERED if PromiseVerdict.UNANSWERED in verdicts else KEPT


if __name__ == "__main__":
    sys.exit(main())
