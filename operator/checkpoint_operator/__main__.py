"""Command line of the operator."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.metadata
import logging
import os
import secrets
import sys
from collections.abc import Sequence

from checkpoint_operator.check import command
from checkpoint_operator.decide.quota import OTHER_NAMESPACES
from checkpoint_operator.gather.endpoint_rules import Pattern
from checkpoint_operator.gather.redaction import Redactor
from checkpoint_operator.gather.run_store import EVERY_NAMESPACE, NAMESPACE_IN_PREFIX, Rules
from checkpoint_operator.injection import command as webhook
from checkpoint_operator.process import arguments as kinds
from checkpoint_operator.process import handlers, logs
from checkpoint_operator.process.logs import LogFormat
from checkpoint_operator.process.operator import Operator, Options
from checkpoint_operator.report.events import OPERATOR
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.location import check_url

_M_MMAP_THRESHOLD = -3
"""A parameter of malloc.h. Once it is set, glibc no longer adjusts it."""
_LARGE_BLOCK = 256 * 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the operator until SIGTERM; with `check` or `webhook` first, that command instead."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for name, run in (("check", command.main), ("webhook", webhook.main)):
        if given[:1] == [name]:
            sys.exit(run(given[1:]))
    parsed = _parser().parse_args(given)
    redactor = Redactor()
    logs.configure(LogFormat(parsed.log_format), redactor=redactor, verbose=parsed.verbose)
    options = Options(
        namespaces=tuple(dict.fromkeys(parsed.namespace)),
        cluster_id=parsed.cluster_id,
        rules=Rules(
            ambient=tuple(parsed.ambient_allow),
            file_urls=parsed.allow_file_urls,
            endpoints=tuple(parsed.endpoint_allow),
            api_server=os.environ.get("KUBERNETES_SERVICE_HOST", ""),
        ),
        metrics_address=parsed.metrics,
        liveness=parsed.liveness,
        resync_seconds=parsed.resync,
        verify_bytes_per_second=parsed.verify_rate,
        deletes_per_second=parsed.delete_rate,
        quotas=dict(parsed.quota),
        watch_nodes=parsed.watch_nodes,
        writer=_signature(),
    )
    logging.getLogger(__name__).info("checkpoint-operator %s", importlib.metadata.version("checkpoint-operator"))
    _map_large_blocks()
    handlers.run(Operator(options, redactor=redactor))


def _map_large_blocks() -> None:
    """Have the C library return large blocks of memory to the system as soon as they are freed.

    Once a block of many megabytes was freed, glibc keeps up to twice that much in each of its arenas. Store calls run
    in threads of their own, which spread over a dozen arenas: a few large manifests would cost a gigabyte for good.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def _signature() -> str:
    """Return the name with which this process signs log entries, unique for each process."""
    version, pod = importlib.metadata.version("checkpoint-operator"), os.environ.get("HOSTNAME", "")
    return " ".join(filter(None, (OPERATOR, version, pod, secrets.token_hex(3))))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint-operator", description="Enforces Checkpoint resources (or `check --help`, `webhook --help`)."
    )
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="serve only this namespace; may be repeated (default: the whole cluster)",
    )
    parser.add_argument(
        "--cluster-id",
        default="",
        metavar="ID",
        help="what stands for this cluster in the owner of a run (default: the UID of namespace kube-system)",
    )
    parser.add_argument(
        "--liveness",
        default="",
        metavar="URL",
        help="where to answer probes, such as http://:8080/healthz, over IPv4 and IPv6 (default: nowhere)",
    )
    parser.add_argument(
        "--metrics",
        type=kinds.address,
        metavar="[HOST]:PORT",
        help="where to serve Prometheus metrics, such as :9090, over IPv4 and IPv6 (default: nowhere)",
    )
    parser.add_argument(
        "--resync",
        type=kinds.duration,
        default=300.0,
        metavar="DURATION",
        help="time between complete passes over all Checkpoints (default: 5m)",
    )
    parser.add_argument(
        "--verify-rate",
        type=kinds.rate,
        default="16Mi",
        metavar="QUANTITY",
        help="bytes per second to read snapshots back with and compare checksums; 0: not at all (default: 16Mi)",
    )
    parser.add_argument(
        "--delete-rate",
        type=kinds.rate,
        default="1000",
        metavar="NUMBER",
        help="objects per second to delete; 0: as fast as the stores allow (default: 1000)",
    )
    parser.add_argument(
        "--quota",
        action="append",
        default=[],
        type=_quota,
        metavar="NAMESPACE=QUANTITY",
        help="bytes that the Checkpoints of this namespace retain together; 0: no limit; may be repeated; "
        f"{OTHER_NAMESPACES} is every namespace that is not named",
    )
    parser.add_argument(
        "--ambient-allow",
        action="append",
        default=[],
        type=_ambient,
        metavar="NAMESPACE=URL",
        help="let Checkpoints of this namespace under this URL use the operator's own identity; may be repeated; "
        f"{EVERY_NAMESPACE} is every namespace, with its name for {NAMESPACE_IN_PREFIX} in the URL",
    )
    parser.add_argument(
        "--endpoint-allow",
        action="append",
        default=[],
        type=_pattern,
        metavar="PATTERN",
        help="let spec.storage.endpoint name only such servers: [http(s)://]HOST[:PORT], where HOST may be * or begin "
        "with *.; may be repeated (default: any but this host, cloud metadata and the cluster's API)",
    )
    parser.add_argument(
        "--watch-nodes", action="store_true", help="save when a node of the training is cordoned or about to go"
    )
    parser.add_argument("--allow-file-urls", action="store_true", help="allow file:// URLs (one-node clusters, tests)")
    logs.add_options(parser)
    return parser


def _ambient(text: str) -> tuple[str, str]:
    namespace, _, url = text.partition("=")
    if not namespace or not url:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE=URL")
    if namespace == EVERY_NAMESPACE and NAMESPACE_IN_PREFIX not in url:
        raise argparse.ArgumentTypeError(
            f"{text!r} gives all namespaces the same place, where each could delete the others' data; "
            f"put {NAMESPACE_IN_PREFIX} into the URL"
        )
    try:
        check_url(url.replace(NAMESPACE_IN_PREFIX, "namespace"), allow_file=False)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return namespace, url.rstrip("/")


def _quota(text: str) -> tuple[str, int]:
    namespace, _, quantity = text.partition("=")
    if not namespace:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE=QUANTITY")
    return namespace, int(kinds.rate(quantity))


def _pattern(text: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    main()
