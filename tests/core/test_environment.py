"""The environment of an injected pod."""

import pytest

from checkpoint_sidecar.core.environment import RunEnvironment
from checkpoint_sidecar.core.errors import ConfigurationError
from checkpoint_sidecar.core.log import Owner, PodIdentity

INJECTED = {"CHECKPOINT_RUN": "c1/team/llama", "CHECKPOINT_URL": "s3://training/llama"}


def test_two_variables_are_enough() -> None:
    assert RunEnvironment.parse(INJECTED) == RunEnvironment(Owner("c1", "team", "llama"), "s3://training/llama")


def test_every_variable_is_read() -> None:
    environ = {
        **INJECTED,
        "CHECKPOINT_ENDPOINT": "https://s3.internal:9000",
        "CHECKPOINT_REGION": "eu-west-1",
        "CHECKPOINT_ADDRESSING_STYLE": "Path",
        "CHECKPOINT_CREDENTIALS_FOLDER": "/var/run/checkpoint-operator/credentials",
        "CHECKPOINT_SERVER_SIDE_ENCRYPTION": "aws:kms",
        "CHECKPOINT_KMS_KEY_ID": "alias/training",
        "CHECKPOINT_REQUESTER_PAYS": "true",
        "CHECKPOINT_TAGS": "team=a b&cost=x=1",
        "CHECKPOINT_POD_NAME": "llama-0",
        "CHECKPOINT_POD_UID": "u1",
        "CHECKPOINT_GRACE_SECONDS": "120",
        "CHECKPOINT_START_FROM": "s3://training/base@best",
        "CHECKPOINT_START_FROM_PART": "model",
        "CHECKPOINT_START_FROM_ENDPOINT": "https://s3.other:9000",
        "CHECKPOINT_START_FROM_REGION": "eu-west-2",
        "CHECKPOINT_START_FROM_ADDRESSING_STYLE": "Virtual",
        "CHECKPOINT_START_FROM_CREDENTIALS_FOLDER": "/var/run/checkpoint-operator/start-from-credentials",
    }
    assert RunEnvironment.parse(environ) == RunEnvironment(
        owner=Owner("c1", "team", "llama"),
        url="s3://training/llama",
        endpoint="https://s3.internal:9000",
        region="eu-west-1",
        addressing_style="Path",
        credentials_folder="/var/run/checkpoint-operator/credentials",
        server_side_encryption="aws:kms",
        kms_key_id="alias/training",
        requester_pays=True,
        tags=(("cost", "x=1"), ("team", "a b")),
        pod=PodIdentity("llama-0", "u1"),
        grace_seconds=120.0,
        start_from="s3://training/base@best",
        start_from_part="model",
        start_from_endpoint="https://s3.other:9000",
        start_from_region="eu-west-2",
        start_from_addressing_style="Virtual",
        start_from_credentials_folder="/var/run/checkpoint-operator/start-from-credentials",
    )


def test_a_pod_that_was_not_injected_gets_instructions() -> None:
    with pytest.raises(ConfigurationError) as caught:
        RunEnvironment.parse({})
    for hint in ("checkpoint-operator.dev/checkpoint", "CHECKPOINT_RUN", "CHECKPOINT_URL", "docs/api.md"):
        assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        pytest.param("CHECKPOINT_RUN", "llama", id="owner-without-namespace"),
        pytest.param("CHECKPOINT_ADDRESSING_STYLE", "path", id="addressing-style-in-lower-case"),
        pytest.param("CHECKPOINT_SERVER_SIDE_ENCRYPTION", "aes256", id="encryption-in-lower-case"),
        pytest.param("CHECKPOINT_KMS_KEY_ID", "a\nb", id="key-with-a-line-break"),
        pytest.param("CHECKPOINT_REQUESTER_PAYS", "yes", id="neither-true-nor-false"),
        pytest.param("CHECKPOINT_TAGS", "team", id="tag-without-value"),
        pytest.param("CHECKPOINT_GRACE_SECONDS", "2m", id="grace-with-a-unit"),
        pytest.param("CHECKPOINT_GRACE_SECONDS", "-1", id="negative-grace"),
        pytest.param("CHECKPOINT_POD_NAME", "llama-0", id="pod-name-without-uid"),
    ],
)
def test_a_variable_that_makes_no_sense_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=variable.rsplit("_", 1)[0]):
        RunEnvironment.parse({**INJECTED, variable: value})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({}, 30, id="the-default-of-kubernetes"),
        pytest.param({"CHECKPOINT_GRACE_SECONDS": "120"}, 120, id="the-pods-own"),
        pytest.param({"CHECKPOINT_GRACE_SECONDS": "120", "TORCHELASTIC_RUN_ID": "x"}, 30, id="torchrun-kills-first"),
        pytest.param(
            {
                "CHECKPOINT_GRACE_SECONDS": "120",
                "TORCHELASTIC_RUN_ID": "x",
                "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "115",
            },
            115,
            id="torchrun-was-told-to-wait",
        ),
        pytest.param(
            {"CHECKPOINT_GRACE_SECONDS": "120", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "115"}, 120, id="without-torchrun"
        ),
    ],
)
def test_the_grace_period_ends_when_the_first_of_pod_and_torchrun_kills(
    environ: dict[str, str], expected: float
) -> None:
    assert RunEnvironment.parse({**INJECTED, **environ}).grace_seconds == expected
