"""Which users may make changes that can cost a run, decided by a real API server with the chart's admission policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from checkpoint_sidecar.core.api import API_VERSION
from localcluster.client import ApiServer, CommandError
from support.admission import Body, Namespace, RefusedError, checkpoint, eventually
from support.webhooks import needs

pytestmark = pytest.mark.api

CONFIRM = "checkpoint-operator.dev/confirm-deletion"
STORAGE = {"url": "s3://bucket/run"}
TAKE_OVER: Body = {"storage": {**STORAGE, "takeOverFrom": "cluster/team/run"}}
ROLL_BACK: Body = {"restore": {"rollback": {"request": "back", "snapshot": "100-1-abcdefgh"}}}
FROM_SCRATCH: Body = {"restore": {"mode": "None"}}
NEVER_MISSING: Body = {"restore": {"onMissing": "StartFresh"}}
DELETE: Body = {"deletionPolicy": "Delete"}
OPERATOR = "system:serviceaccount:operators:ckpt-checkpoint-operator"


@pytest.fixture(scope="module")
def team(chart: ApiServer) -> Namespace:
    """A namespace where `editor` and `admin` have our roles as aggregation gives them."""
    needs(chart, "validatingadmissionpolicies")
    namespace = Namespace.fresh(chart)
    for user, roles in {"editor": ["view", "edit"], "admin": ["view", "edit", "admin"]}.items():
        for role in roles:
            name = f"ckpt-checkpoint-operator-{role}"
            namespace.kubectl("create", "rolebinding", f"{user}-{role}", f"--user={user}", f"--clusterrole={name}")
    eventually(lambda: refused(namespace, "editor", **TAKE_OVER), bool)
    return namespace


def refused(namespace: Namespace, who: str, name: str = "run", **spec: Any) -> str:
    """Why this user may not create such a Checkpoint, or an empty text."""
    try:
        namespace.create(checkpoint(name, **spec), dry_run=True, user=who)
    except RefusedError as error:
        return str(error)
    return ""


def change_refused(namespace: Namespace, who: str, name: str, spec: Body) -> str:
    """Why this user may not change the Checkpoint so, or an empty text."""
    try:
        namespace.patch("checkpoints", name, {"spec": spec}, dry_run=True, user=who)
    except RefusedError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("spec", "editor", "verb"),
    [
        pytest.param(TAKE_OVER, False, "takeover", id="taking a run over"),
        pytest.param(ROLL_BACK, True, "rollback", id="rolling back"),
        pytest.param(FROM_SCRATCH, True, "rollback", id="starting from scratch"),
        pytest.param(NEVER_MISSING, True, "rollback", id="starting from scratch when nothing can be restored"),
        pytest.param(DELETE, False, "purge", id="letting the data go with the object"),
    ],
)
def test_dangerous_changes_need_a_verb_of_their_own(team: Namespace, spec: Body, editor: bool, verb: str) -> None:
    name = f"needs-{verb}"
    team.create(checkpoint(name))
    assert refused(team, "admin", **spec) == ""
    assert change_refused(team, "admin", name, spec) == ""
    if editor:
        assert refused(team, "editor", **spec) == ""
        assert change_refused(team, "editor", name, spec) == ""
    else:
        assert f'needs the verb "{verb}"' in refused(team, "editor", **spec)
        assert f'needs the verb "{verb}"' in change_refused(team, "editor", name, spec)
    team.kubectl("delete", "ckpt", name)


@pytest.fixture(scope="module")
def newcomer(team: Namespace) -> str:
    """A user who may write Checkpoints and nothing else."""
    allow(team, "newcomer", "checkpoint-operator.dev", "checkpoints", ["create", "get", "update", "patch"])
    eventually(lambda: refused(team, "newcomer"), lambda answer: answer == "")
    return "newcomer"


def allow(namespace: Namespace, user: str, group: str, resource: str, verbs: list[str], *names: str) -> None:
    """Give a user these verbs in the namespace."""
    rule = {
        "apiGroups": [group],
        "resources": [resource],
        "verbs": verbs,
        **({"resourceNames": names} if names else {}),
    }
    metadata = {"name": f"{user}-{resource}"}
    kind = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role"}
    namespace.create({**kind, "metadata": metadata, "rules": [rule]})
    namespace.kubectl("create", "rolebinding", f"{user}-{resource}", f"--user={user}", f"--role={user}-{resource}")


@pytest.mark.parametrize("spec", [ROLL_BACK, FROM_SCRATCH, NEVER_MISSING], ids=["rollback", "None", "StartFresh"])
def test_an_editor_without_the_verb_does_not_roll_back(team: Namespace, newcomer: str, spec: Body) -> None:
    assert 'needs the verb "rollback"' in refused(team, newcomer, **spec)


@pytest.fixture
def begun(team: Namespace) -> Iterator[str]:
    """A Checkpoint whose run has claimed its prefix, with a policy."""
    storage = {**STORAGE, "endpoint": "https://s3.internal", "credentialsSecret": {"name": "keys"}}
    team.create(checkpoint("begun", storage=storage, retention={"keepLast": 5, "maxAge": "720h"}))
    claim = {"status": {"claimedBy": f"cluster/{team.name}/begun"}}
    team.patch("checkpoints", "begun", claim, status=True)
    yield "begun"
    team.kubectl("delete", "ckpt", "begun")


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "https://elsewhere.example.com"},
        {"endpoint": ""},
        {"credentialsSecret": {"name": "others"}},
        {"credentialsSecret": None},
        {"region": "eu-west-1"},
        {"addressingStyle": "Virtual"},
    ],
    ids=lambda change: "-".join(map(str, next(iter(change.items())))),
)
def test_a_run_that_has_begun_is_sent_elsewhere_only_with_the_verb(team: Namespace, begun: str, change: Body) -> None:
    assert 'needs the verb "divert"' in change_refused(team, "editor", begun, {"storage": change})
    assert change_refused(team, "admin", begun, {"storage": change}) == ""


def test_before_anything_is_claimed_a_mistake_in_the_address_is_corrected_freely(team: Namespace) -> None:
    team.create(checkpoint("begins", storage={**STORAGE, "endpoint": "https://s3.intrenal"}))
    for claimed in ("", "cluster/other/begins"):
        team.patch("checkpoints", "begins", {"status": {"claimedBy": claimed}}, status=True)
        assert change_refused(team, "editor", "begins", {"storage": {"endpoint": "https://s3.internal"}}) == ""
    team.kubectl("delete", "ckpt", "begins")


def test_a_secret_goes_to_a_server_of_ones_choice_only_for_users_that_may_read_it(team: Namespace) -> None:
    storage = {**STORAGE, "credentialsSecret": {"name": "keys"}}
    elsewhere = {**storage, "endpoint": "https://elsewhere.example.com"}
    assert refused(team, "editor", storage=storage) == ""
    assert refused(team, "editor", storage={**elsewhere, "credentialsSecret": None}) == ""
    needed = 'the Secret "keys" is used with the server that spec.storage.endpoint names'
    assert needed in refused(team, "editor", storage=elsewhere)
    assert refused(team, "admin", storage=elsewhere) == ""
    allow(team, "editor", "", "secrets", ["get"], "keys")
    eventually(lambda: refused(team, "editor", storage=elsewhere), lambda answer: answer == "")
    other = {**elsewhere, "credentialsSecret": {"name": "others"}}
    assert 'the Secret "others" is used' in refused(team, "editor", storage=other)
    start = {"url": "s3://b/base", "endpoint": "https://elsewhere.example.com", "credentialsSecret": {"name": "others"}}
    assert "spec.restore.startFrom.endpoint names" in refused(team, "editor", restore={"startFrom": start})
    allowed = start | {"credentialsSecret": {"name": "keys"}}
    assert refused(team, "editor", restore={"startFrom": allowed}) == ""
    assert refused(team, "admin", restore={"startFrom": start}) == ""


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        pytest.param({"keepLast": 2}, True, id="fewer, but two"),
        pytest.param({"keepLast": 10, "keepEverySteps": 500, "maxTotalSize": "1Ti"}, True, id="other rules"),
        pytest.param({"gracePeriod": "90m"}, True, id="a longer grace"),
        pytest.param({"keepLast": 1}, False, id="one"),
        pytest.param({"keepLast": None}, False, id="no floor"),
        pytest.param({"keepLast": None, "keepEverySteps": 1000000000000}, False, id="a rule that keeps one"),
        pytest.param({"gracePeriod": "0s"}, False, id="no grace"),
        pytest.param({"gracePeriod": "59m59s"}, False, id="a short grace"),
    ],
)
def test_a_policy_that_may_delete_nearly_all_needs_the_verb(
    team: Namespace, begun: str, change: Body, allowed: bool
) -> None:
    refusal = change_refused(team, "editor", begun, {"retention": change})
    assert refusal == "" if allowed else '"purge"' in refusal
    assert change_refused(team, "admin", begun, {"retention": change}) == ""


def test_the_first_policy_of_a_run_keeps_two_or_needs_the_verb(team: Namespace) -> None:
    team.create(checkpoint("unlimited"))
    team.create(checkpoint("tried", retention={"keepLast": 1, "dryRun": True}))
    team.create(checkpoint("small", retention={"keepLast": 1, "gracePeriod": "1m"}))
    assert '"purge"' in change_refused(team, "editor", "unlimited", {"retention": {"maxAge": "24h"}})
    assert change_refused(team, "editor", "unlimited", {"retention": {"keepLast": 3}}) == ""
    assert '"purge"' in change_refused(team, "editor", "tried", {"retention": {"dryRun": False}})
    assert change_refused(team, "editor", "tried", {"retention": {"keepLast": 2, "dryRun": False}}) == ""
    # What was always so small may be changed otherwise, and made larger.
    assert change_refused(team, "editor", "small", {"suspend": True, "retention": {"gracePeriod": "2m"}}) == ""
    team.kubectl("delete", "ckpt", "unlimited", "tried", "small")


@pytest.mark.parametrize(
    "spec",
    [TAKE_OVER, ROLL_BACK, DELETE, FROM_SCRATCH, NEVER_MISSING],
    ids=["taken over", "rolled back", "to be purged", "from scratch", "fresh when missing"],
)
def test_what_an_admin_set_an_editor_may_leave_there_and_take_back(team: Namespace, spec: Body) -> None:
    team.create(checkpoint("kept", **spec))
    assert change_refused(team, "editor", "kept", {**spec, "suspend": True}) == ""
    back: Body = {"storage": {"takeOverFrom": ""}, "restore": None, "deletionPolicy": "Retain"}
    assert change_refused(team, "editor", "kept", back) == ""
    team.patch("checkpoints", "kept", {"metadata": {"annotations": {CONFIRM: "kept"}}})
    team.kubectl("delete", "ckpt", "kept")


@pytest.mark.parametrize("many", [False, True], ids=["one", "all of the namespace"])
def test_a_checkpoint_whose_data_goes_with_it_is_deleted_only_when_that_is_confirmed(
    chart: ApiServer, team: Namespace, many: bool
) -> None:
    namespace = Namespace.fresh(chart)
    namespace.create(checkpoint("run", **DELETE))
    command = ("delete", "ckpt", "--all") if many else ("delete", "ckpt", "run")
    with pytest.raises(CommandError, match=r"kubectl annotate ckpt run checkpoint-operator\.dev/confirm-deletion=run"):
        namespace.kubectl(*command, "--wait=false")
    namespace.patch("checkpoints", "run", {"metadata": {"annotations": {CONFIRM: "another"}}})
    with pytest.raises(CommandError, match="deletes its snapshots"):
        namespace.kubectl(*command, "--wait=false")
    assert namespace.kubectl("get", "ckpt", "--output=name").split() == ["checkpoint.checkpoint-operator.dev/run"]
    namespace.patch("checkpoints", "run", {"metadata": {"annotations": {CONFIRM: "run"}}})
    namespace.kubectl(*command, "--wait=false")


def test_the_operator_sets_finalizers_and_changes_no_spec(team: Namespace) -> None:
    team.create(checkpoint("reported"))
    team.patch("checkpoints", "reported", {"metadata": {"finalizers": ["example.com/theirs"]}})
    both = ["example.com/theirs", "checkpoint-operator.dev/purge"]
    team.patch("checkpoints", "reported", {"metadata": {"finalizers": both}}, user=OPERATOR)
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "8a5b1d5e-0000-0000-0000-000000000000"}
    for change in (
        {"spec": {"suspend": True}},
        {"metadata": {"annotations": {CONFIRM: "reported"}}},
        {"metadata": {"labels": {"team": "other"}}},
        {"metadata": {"ownerReferences": [owner]}},
        {"metadata": {"finalizers": both[1:]}},
        {"metadata": {"finalizers": [*both, "example.com/another"]}},
    ):
        with pytest.raises(RefusedError, match="may change only the status and the finalizer of a Checkpoint"):
            team.patch("checkpoints", "reported", change, user=OPERATOR)
    through_status = {"metadata": {"annotations": {CONFIRM: "reported"}}, "status": {"snapshots": 1}}
    stored = team.patch("checkpoints", "reported", through_status, status=True)  # by any user
    assert stored["status"] == {"snapshots": 1}
    assert "annotations" not in stored["metadata"]
    team.patch("checkpoints", "reported", {"metadata": {"finalizers": both[:1]}}, user=OPERATOR)
    team.patch("checkpoints", "reported", {"metadata": {"finalizers": None}})
    team.kubectl("delete", "ckpt", "reported")


def test_a_checkpoint_that_keeps_its_data_is_deleted_without_a_word(team: Namespace) -> None:
    team.create(checkpoint("plain"))
    team.kubectl("delete", "ckpt", "plain", "--as=editor")


def test_kubernetes_itself_may_empty_a_namespace_that_is_deleted(chart: ApiServer, team: Namespace) -> None:
    namespace = Namespace.fresh(chart)
    namespace.create(checkpoint("run", **DELETE))
    controller = ("--as=system:serviceaccount:kube-system:namespace-controller", "--as-group=system:masters")
    with pytest.raises(CommandError, match="deletes its snapshots"):
        namespace.kubectl("delete", "ckpt", "run", *controller)
    group = "--as-group=system:serviceaccounts:kube-system"
    namespace.kubectl("delete", "ckpt", "run", *controller, group, "--wait=false")


def test_the_place_of_a_run_cannot_change_at_all(team: Namespace) -> None:
    team.create(checkpoint("placed"))
    assert "url is immutable" in change_refused(team, "admin", "placed", {"storage": {"url": "s3://bucket/other"}})


def test_the_policy_names_the_version_that_is_served(team: Namespace) -> None:
    policy = team.kubectl("get", "validatingadmissionpolicy", "ckpt-checkpoint-operator-guardrails", "--output=yaml")
    assert API_VERSION.partition("/")[2] in policy
    assert "expressionWarnings" not in policy
