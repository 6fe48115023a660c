"""The command `checkpoint-operator webhook`: serves the admission webhook until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import logging
import signal
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from checkpoint_operator.gather.kube import Kube, KubeError, WebhookKind
from checkpoint_operator.gather.redaction import Redactor
from checkpoint_operator.injection.certificates import KeyPair
from checkpoint_operator.injection.lookup import Lookup
from checkpoint_operator.injection.pods import Library
from checkpoint_operator.injection.server import Health, Listener, Reviewer
from checkpoint_operator.injection.trust import CertificateFolder, SelfMade, Source, TrustError, follow
from checkpoint_operator.process import arguments as kinds
from checkpoint_operator.process import logs
from checkpoint_operator.process.logs import LogFormat

REFRESH_SECONDS = 15.0
"""How often the certificate and the trust of the API servers are looked after."""

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Serve; return the exit status."""
    parsed = parser().parse_args(arguments)
    if bool(parsed.certificate_folder) == bool(parsed.secret):
        parser().error("either --certificate-folder or --secret is required")
    if parsed.secret and not (parsed.service and parsed.configuration):
        parser().error("--secret requires --service and --configuration")
    logs.configure(LogFormat(parsed.log_format), redactor=Redactor(), verbose=parsed.verbose)
    asyncio.run(_serve(parsed))
    return 0


async def _serve(parsed: argparse.Namespace) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    health = Health()
    async with Kube() as kube:
        lookup = Lookup(kube.checkpoint, clock=time.monotonic)
        reviewer = Reviewer(lookup, cluster_id=parsed.cluster_id, health=health, library=parsed.library)
        listener = Listener(reviewer.application(), *parsed.listen)

        def use(pair: KeyPair) -> None:
            listener.use(pair)
            health.ready = True

        seconds = min(REFRESH_SECONDS, parsed.certificate_lifetime / 100)
        errors = (TrustError, KubeError, ssl.SSLError)
        following = asyncio.create_task(follow(_source(parsed, kube), use, seconds=seconds, errors=errors))
        stopping = asyncio.create_task(stopped.wait())
        async with listener.listening():
            logger.info("started: %s", parsed.configuration or parsed.certificate_folder)
            await asyncio.wait((following, stopping), return_when=asyncio.FIRST_COMPLETED)
            # The Service sends connections here until it has heard of the end.
            health.ready = False
            if not following.done():
                await asyncio.sleep(parsed.drain)
        following.cancel()
        stopping.cancel()
        outcome, _ = await asyncio.gather(following, stopping, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome
    logger.info("stopped")


def _source(parsed: argparse.Namespace, kube: Kube) -> Source:
    if parsed.certificate_folder:
        return CertificateFolder(parsed.certificate_folder)
    namespace, name = parsed.service
    return SelfMade(
        kube,
        secret=parsed.secret,
        configurations=parsed.configuration,
        host=f"{name}.{namespace}.svc",
        lifetime=dt.timedelta(seconds=parsed.certificate_lifetime),
        clock=lambda: dt.datetime.now(dt.UTC),
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = argparse.ArgumentParser(
        prog="checkpoint-operator webhook", description="Injects labelled pods, as an admission webhook."
    )
    made.add_argument(
        "--listen", type=kinds.address, default=":9443", metavar="[HOST]:PORT", help="(default: :9443, all addresses)"
    )
    made.add_argument(
        "--cluster-id",
        default="",
        metavar="ID",
        help="what stands for this cluster in the owner of a run (default: as the status of the Checkpoint says)",
    )
    made.add_argument(
        "--library",
        type=_library,
        metavar="JSON",
        help="the library for pods whose image lacks it, as the chart describes it (default: pods do not get it)",
    )
    made.add_argument(
        "--certificate-folder",
        type=Path,
        metavar="FOLDER",
        help="serve tls.crt and tls.key of this folder, and notice when they change",
    )
    made.add_argument(
        "--secret",
        type=kinds.object_name,
        metavar="NAMESPACE/NAME",
        help="make certificates, and keep them in this Secret, which exists",
    )
    made.add_argument(
        "--service", type=kinds.object_name, metavar="NAMESPACE/NAME", help="the Service that such certificates are for"
    )
    made.add_argument(
        "--configuration",
        action="append",
        default=[],
        type=_configuration,
        metavar="KIND/NAME",
        help="a webhook configuration whose caBundle is kept in step with them; may be repeated",
    )
    made.add_argument(
        "--certificate-lifetime",
        type=kinds.duration,
        default="2160h",
        metavar="DURATION",
        help="of a certificate that is made; it is replaced when a third of it is left (default: 2160h, 90 days)",
    )
    made.add_argument(
        "--drain",
        type=kinds.duration,
        default="5s",
        metavar="DURATION",
        help="how long to answer after SIGTERM (default: 5s)",
    )
    logs.add_options(made)
    return made


def _library(text: str) -> Library:
    try:
        return Library.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _configuration(text: str) -> tuple[WebhookKind, str]:
    kind, _, name = text.partition("/")
    for known in get_args(WebhookKind):
        if kind == known and name:
            return known, name
    raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(get_args(WebhookKind))}, a / and a name")
