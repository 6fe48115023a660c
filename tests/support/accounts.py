"""Acting as a service account of the chart."""

from __future__ import annotations

import json
from pathlib import Path

from localcluster.client import ApiServer


def account_kubeconfig(api: ApiServer, namespace: str, account: str, path: Path) -> Path:
    """Write a kubeconfig with a token of a service account, and with the rights it has."""
    token = api.kubectl("create", "token", account, f"--namespace={namespace}").strip()
    authority = str(api.directory / "pki" / "ca.crt")
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "chart",
        "contexts": [{"name": "chart", "context": {"cluster": "chart", "user": "chart"}}],
        "clusters": [{"name": "chart", "cluster": {"server": api.url, "certificate-authority": authority}}],
        "users": [{"name": "chart", "user": {"token": token}}],
    }
    path.write_text(json.dumps(config))
    return path
