"""Who may change what can cost somebody a run, as a real API server with the chart's admission policy decides it."""

from __future__ import annotations

from typing import Any

import pytest

from admission import Body, Namespace, checkpoint, eventually
from checkpoint_sidecar.core.api import API_VERSION
from localcluster.client import ApiServer, CommandError

pytestmark = pytest.mark.api

CONFIRM = "checkpoint-operator.dev/confirm-deletion"
STORAGE = {"url": "s3://bucket/run"}
TAKE_OVER: Body = {"storage": {**STORAGE, "takeOverFrom": "cluster/team/run"}}
ROLL_BACK: Body = {"restore": {"rollback": {"request": "back", "snapshot": "100-1-abcdefgh"}}}
DELETE: Body = {"deletionPolicy": "Delete"}


@pytest.fixture(scope="module")
def team(chart: ApiServer) -> Namespace:
    """A namespace where `editor` and `admin` have our roles as aggregation gives them."""
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
        namespace.create(checkpoint(name, **spec), "--dry-run=server", f"--as={who}")
    except CommandError as error:
        return str(error)
    return ""


def change_refused(namespace: Namespace, who: str, name: str, spec: Body) -> str:
    """Why this user may not change the Checkpoint so, or an empty text."""
    try:
        namespace.patch("ckpt", name, {"spec": spec}, "--dry-run=server", f"--as={who}")
    except CommandError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("spec", "editor", "verb"),
    [
        pytest.param(TAKE_OVER, False, "takeover", id="taking a run over"),
        pytest.param(ROLL_BACK, True, "rollback", id="rolling back"),
        pytest.param(DELETE, False, "purge", id="letting the data go with the object"),
    ],
)
def test_dangerous_changes_need_a_verb_of_their_own(team: Namespace, spec: Body, editor: bool, verb: str) -> None:
    name = verb
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


def test_an_editor_without_the_verb_does_not_roll_back(team: Namespace) -> None:
    rules = {"apiGroups": ["checkpoint-operator.dev"], "resources": ["checkpoints"], "verbs": ["create", "get"]}
    metadata = {"name": "without-rollback"}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata, "rules": [rules]}
    team.create(role)
    team.kubectl("create", "rolebinding", "without-rollback", "--user=newcomer", "--role=without-rollback")
    assert eventually(lambda: refused(team, "newcomer"), lambda answer: answer == "") == ""
    assert 'needs the verb "rollback"' in refused(team, "newcomer", **ROLL_BACK)


@pytest.mark.parametrize("spec", [TAKE_OVER, ROLL_BACK, DELETE], ids=["taken over", "rolled back", "to be purged"])
def test_what_an_admin_set_an_editor_may_leave_there_and_take_back(team: Namespace, spec: Body) -> None:
    team.create(checkpoint("kept", **spec))
    assert change_refused(team, "editor", "kept", {**spec, "suspend": True}) == ""
    back: Body = {"storage": {"takeOverFrom": ""}, "restore": {"rollback": None}, "deletionPolicy": "Retain"}
    assert change_refused(team, "editor", "kept", back) == ""
    team.patch("ckpt", "kept", {"metadata": {"annotations": {CONFIRM: "kept"}}})
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
    namespace.patch("ckpt", "run", {"metadata": {"annotations": {CONFIRM: "another"}}})
    with pytest.raises(CommandError, match="deletes its snapshots"):
        namespace.kubectl(*command, "--wait=false")
    assert namespace.kubectl("get", "ckpt", "--output=name").split() == ["checkpoint.checkpoint-operator.dev/run"]
    namespace.patch("ckpt", "run", {"metadata": {"annotations": {CONFIRM: "run"}}})
    namespace.kubectl(*command, "--wait=false")


def test_the_operator_sets_finalizers_and_changes_no_spec(team: Namespace) -> None:
    team.create(checkpoint("reported"))
    operator = "--as=system:serviceaccount:operators:ckpt-checkpoint-operator"
    team.patch("ckpt", "reported", {"metadata": {"finalizers": ["checkpoint-operator.dev/purge"]}}, operator)
    with pytest.raises(CommandError, match="nothing of a Checkpoint but its status and its finalizer"):
        team.patch("ckpt", "reported", {"spec": {"suspend": True}}, operator)
    team.patch("ckpt", "reported", {"metadata": {"finalizers": None}}, operator)
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
