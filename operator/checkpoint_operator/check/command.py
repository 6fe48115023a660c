"""The command `checkpoint-operator check`: asks the API server and prints what is wrong."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from checkpoint_operator.check.requirements import Findings, complaints, rights
from checkpoint_operator.gather.kube import Kube, KubeError
from checkpoint_operator.model.rights import Right


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 if all is well."""
    parsed = _parser().parse_args(arguments)
    wanted = [right for rules in parsed.rules for right in rights(rules, parsed.namespace)]
    wanted += [right for rules in parsed.cluster_rules for right in rights(rules, ())]
    try:
        findings = asyncio.run(_gather(parsed.deployment, parsed.webhook, wanted))
    except KubeError as error:
        print(f"wrong: {error}")
        return 1
    wrong = list(complaints(findings))
    for line in wrong:
        print(f"wrong: {line}")
    if not wrong:
        print(f"ok: {findings.available} ready, {len(findings.served)} resources served, {len(wanted)} rights")
    return 1 if wrong else 0


async def _gather(deployment: tuple[str, str], webhook: tuple[str, str] | None, wanted: Sequence[Right]) -> Findings:
    async with Kube() as kube:
        return Findings(
            served=await kube.served(),
            available=await kube.available_pods(*deployment),
            missing=tuple([right for right in wanted if not await kube.may(right)]),
            webhook=await kube.available_pods(*webhook) or 0 if webhook else None,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint-operator check",
        description="Checks an installation from inside, with the operator's service account.",
    )
    parser.add_argument("--deployment", type=_deployment, required=True, metavar="NAMESPACE/NAME")
    parser.add_argument("--webhook", type=_deployment, metavar="NAMESPACE/NAME", help="the Deployment of the webhook")
    parser.add_argument(
        "--namespace", action="append", default=[], metavar="NAME", help="where --rules apply (default: everywhere)"
    )
    parser.add_argument("--rules", action="append", default=[], metavar="JSON", help="RBAC rules it should have")
    parser.add_argument(
        "--cluster-rules", action="append", default=[], metavar="JSON", help="RBAC rules it should have everywhere"
    )
    return parser


def _deployment(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME")
    return namespace, name
