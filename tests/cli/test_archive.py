"""What leaves the cluster in an archive for a support request: no secret, under whatever name."""

from __future__ import annotations

import pytest

from checkpoint_cli.archive import without_secrets
from checkpoint_cli.cluster.bundle import redacted_object


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
        "https://user:pass@proxy",
        "https://acc.blob/x?se=1&sig=abc%2Fdef",
    ],
)
def test_what_looks_like_a_secret_is_removed(secret: str) -> None:
    kept = without_secrets(f"before {secret} after")
    assert secret not in kept
    assert "***" in kept
    assert kept.startswith("before ")
    assert kept.endswith(" after")


def test_an_object_keeps_its_shape_and_loses_values_that_may_be_secret() -> None:
    env: list[dict[str, object]] = [
        {"name": "PROXY_PASSWORD", "value": "hunter2"},
        {"name": "LOG_LEVEL", "value": "info"},
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s3-keys", "key": "token"}}},
    ]
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "hunter2", "owner": "team"}
    body = {"metadata": {"annotations": applied, "managedFields": [{}]}, "spec": {"containers": [{"env": env}]}}
    assert redacted_object(body) == {
        "metadata": {"annotations": {"owner": "team"}},
        "spec": {"containers": [{"env": [env[0] | {"value": "***"}, env[1], env[2]]}]},
    }
