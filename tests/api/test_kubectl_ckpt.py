"""`kubectl ckpt` on a real API server, which admits what it writes; the test plays the operator and writes statuses."""

from __future__ import annotations

import json
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from checkpoint_cli.verbs import Door
from localcluster.client import ApiServer, kubectl_program
from support.admission import Namespace, checkpoint, pod, snapshot
from support.commands import Program, Ran

pytestmark = pytest.mark.api

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "cli-schema.json").read_text())
COMMITTED_AT = "2026-01-01T12:00:00Z"
NEWEST, OLDER = "1000-7-abcdefg2", "900-6-abcdefg2"


def condition(kind: str, reason: str, *, status: str = "True", message: str = "as it should be") -> dict[str, Any]:
    times = {"lastTransitionTime": COMMITTED_AT}
    return {"type": kind, "status": status, "reason": reason, "message": message, **times}


STATUS = {
    "conditions": [condition("Ready", "Configured"), condition("SavesFailing", "NotFailing", status="False")],
    "claimedBy": "cluster/test/run",
    "latest": {"step": 1000, "snapshot": NEWEST, "time": COMMITTED_AT, "bytes": 2048, "worldSize": 8},
    "best": {"step": 900, "snapshot": OLDER, "metric": "loss", "value": "0.5"},
    "attempt": {"number": 7, "startedAt": "2026-01-01T11:50:00Z", "restoredStep": 400, "podCount": 1},
    "lastRestore": {"attempt": 7, "reason": "Latest", "time": COMMITTED_AT, "lostSteps": 25, "lostSeconds": 50},
    "snapshots": 2,
    "retainedBytes": 4096,
    "pendingPurge": [{"snapshot": "800-5-abcdefg2", "bytes": 1, "purgeAfter": COMMITTED_AT, "reasons": ["MaxAge"]}],
    "logSequence": 42,
}


@pytest.fixture
def kubectl_ckpt(crds: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    for name, value in crds.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(Path(kubectl_program()).parent), prepend=":")
    return Program(Door.CLUSTER, capsys)


@pytest.fixture
def training(namespace: Namespace) -> Namespace:
    """A Checkpoint with two snapshots, as an operator reports them."""
    namespace.create(checkpoint(retention={"keepBest": [{"metric": "loss"}]}, save={"everySteps": 500, "every": "0s"}))
    namespace.patch("checkpoints", "run", {"status": STATUS}, status=True)
    for identifier, step, attempt, reason in ((NEWEST, 1000, 7, "Restorable"), (OLDER, 900, 6, "Superseded")):
        path = f"step-{step}/000{attempt}-abcdefg2"
        body = snapshot(f"run-{identifier}", step=step, attempt=attempt, path=path)
        body["metadata"]["labels"] = {"checkpoint-operator.dev/checkpoint": "run"}
        namespace.create(body)
        status = {
            "conditions": [condition("Ready", reason), condition("Verified", "ChecksumsMatch")],
            "committedAt": f"2026-01-01T{attempt + 5}:00:00Z",
            "bytes": 2048,
            "savedIn": "1s500ms",
            "metrics": {"loss": "0.5"},
            "retention": {"kept": True, "reasons": ["Newest", "KeepBest:loss"]},
        }
        namespace.patch("checkpointsnapshots", f"run-{identifier}", {"status": status}, status=True)
    return namespace


def within(namespace: Namespace, program: Program, *arguments: str) -> Ran:
    return program(*arguments, "--namespace", namespace.name)


def test_ls_without_a_name_lists_the_runs_of_the_namespace(kubectl_ckpt: Program, training: Namespace) -> None:
    ran = within(training, kubectl_ckpt, "ls")
    header, line = ran.output.splitlines()
    assert header.split()[:3] == ["NAME", "HEALTH", "STEP"]
    assert line.split()[:3] == [f"{training.name}/run", "Healthy", "1000"]
    assert f"{training.name}/run" in kubectl_ckpt("ls", "-A", "-o", "name").output.split()


def test_ls_with_a_name_lists_snapshots_newest_first(kubectl_ckpt: Program, training: Namespace) -> None:
    assert within(training, kubectl_ckpt, "ls", "run", "-o", "name").output.split() == [NEWEST, OLDER]
    wide = within(training, kubectl_ckpt, "ls", "run", "-o", "wide").output
    assert "loss=0.5" in wide
    assert "latest" in wide
    assert "1.5s" in wide


def test_a_bundle_holds_the_checkpoint_and_the_operator_and_no_secret(
    kubectl_ckpt: Program, training: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"app.kubernetes.io/name": "checkpoint-operator"}
    env = [{"name": "HTTPS_PROXY", "value": "http://me:hunter2@proxy"}, {"name": "API_TOKEN", "value": "hunter2"}]
    container = {"name": "operator", "image": "operator", "env": env}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": "checkpoint-operator", "labels": labels}
    training.create({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    training.admitted(pod("run"))  # policies of other tests may be installed, and see the Checkpoint a little later
    training.create(pod("run"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")

    target = tmp_path / "run.tar.gz"
    ran = within(training, kubectl_ckpt, "bundle", "run", "--file", str(target), "--operator-namespace", training.name)

    assert (ran.status, ran.output) == (0, f"Wrote {target}\n"), ran.errors
    with tarfile.open(target) as archive:
        texts = {each.name: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]
    assert set(texts) == {
        f"bundle/{name}"
        for name in (
            "checkpoint.yaml",
            "snapshots.yaml",
            "events.yaml",
            "pods.yaml",
            "operator.yaml",
            "operator.log",
            "versions.json",
            "checks.json",
        )
    }
    assert yaml.safe_load(texts["bundle/checkpoint.yaml"])["status"]["conditions"][0]["type"] == "Ready"
    assert NEWEST in texts["bundle/snapshots.yaml"]
    assert yaml.safe_load(texts["bundle/operator.yaml"])[0]["metadata"]["name"] == "checkpoint-operator"
    assert "serverVersion" in texts["bundle/versions.json"]
    assert not [name for name, text in texts.items() if "hunter2" in text]


@pytest.mark.parametrize(
    "arguments", [("ls",), ("ls", "run"), ("show", "run@best"), ("status", "run"), ("log", "run"), ("hold", "run@900")]
)
def test_json_is_what_the_schema_says(kubectl_ckpt: Program, training: Namespace, arguments: tuple[str, ...]) -> None:
    record = within(training, kubectl_ckpt, *arguments, "-o", "json").json
    jsonschema.validate(record, SCHEMA)
    assert yaml.safe_load(within(training, kubectl_ckpt, *arguments, "-o", "yaml").output)["kind"] == record["kind"]


@pytest.mark.parametrize(
    ("selector", "found"),
    [("", NEWEST), ("@latest", NEWEST), ("@best", OLDER), ("@900", OLDER), (f"@{OLDER}", OLDER), ("@1000-7", NEWEST)],
)
def test_a_selector_finds_its_snapshot(kubectl_ckpt: Program, training: Namespace, selector: str, found: str) -> None:
    record = within(training, kubectl_ckpt, "show", f"run{selector}", "-o", "json").json
    assert record["id"] == found


def test_status_is_one_screen_with_progress_and_what_comes_next(kubectl_ckpt: Program, training: Namespace) -> None:
    text = within(training, kubectl_ckpt, "status", "run", "--until-step", "2000").output
    assert len(text.splitlines()) < 24
    # 600 steps in ten minutes.
    assert "Health:        Healthy" in text
    assert "1 steps/s, step 2000 in about 16m40s" in text
    assert "Lost work:     25 steps, 50s at the last start" in text
    assert "Next save:     at step 1500, when training runs" in text
    assert "purges 800-5-abcdefg2 after 2026-01-01T12:00:00Z (MaxAge)" in text


def test_a_condition_that_is_bad_makes_the_run_unhealthy(kubectl_ckpt: Program, training: Namespace) -> None:
    conditions = [condition("Ready", "AccessDenied", status="False", message="no right to write")]
    training.patch("checkpoints", "run", {"status": {"conditions": conditions}}, status=True)
    record = within(training, kubectl_ckpt, "status", "run", "-o", "json").json
    assert record["health"] == "Broken"
    assert record["problems"] == ["Ready is False, AccessDenied: no right to write"]


@pytest.mark.parametrize(("verb", "disposition"), [("hold", "Hold"), ("retire", "Retire"), ("release", "Auto")])
def test_a_disposition_is_written_once(kubectl_ckpt: Program, training: Namespace, verb: str, disposition: str) -> None:
    training.patch(
        "checkpointsnapshots", f"run-{OLDER}", {"spec": {"disposition": "Hold" if verb == "release" else "Auto"}}
    )
    yes = ("--yes",) if verb == "retire" else ()
    before = training.read("checkpointsnapshots", f"run-{OLDER}")["spec"]
    assert within(training, kubectl_ckpt, verb, "run@900", "--dry-run", "-o", "json").json["done"] is False
    assert training.read("checkpointsnapshots", f"run-{OLDER}")["spec"] == before
    assert within(training, kubectl_ckpt, verb, "run@900", *yes, "-o", "json").json["done"] is True
    assert training.read("checkpointsnapshots", f"run-{OLDER}")["spec"]["disposition"] == disposition
    assert within(training, kubectl_ckpt, verb, "run@900", *yes, "-o", "json").json["done"] is False


def test_release_from_quarantine_is_a_new_request(kubectl_ckpt: Program, training: Namespace) -> None:
    request = within(training, kubectl_ckpt, "release", "run@900", "--quarantine", "-o", "name").output.strip()
    annotations = training.read("checkpointsnapshots", f"run-{OLDER}")["metadata"]["annotations"]
    assert annotations == {"checkpoint-operator.dev/release-quarantine": request}


@pytest.mark.parametrize(
    ("selector", "wanted"), [("900", {"to": "Snapshot", "snapshot": OLDER}), ("best", {"to": "Best"})]
)
def test_rollback_is_a_new_request(
    kubectl_ckpt: Program, training: Namespace, selector: str, wanted: dict[str, str]
) -> None:
    assert within(training, kubectl_ckpt, "rollback", f"run@{selector}", "--dry-run").status == 0
    assert "rollback" not in training.read("checkpoints", "run")["spec"]["restore"]
    request = within(training, kubectl_ckpt, "rollback", f"run@{selector}", "--yes", "-o", "name").output.strip()
    assert training.read("checkpoints", "run")["spec"]["restore"]["rollback"] == {"request": request, **wanted}
    assert f"request {request}" in within(training, kubectl_ckpt, "status", "run").output


def test_what_is_hard_to_undo_needs_yes_where_there_is_no_terminal(kubectl_ckpt: Program, training: Namespace) -> None:
    for verb in ("rollback", "retire"):
        ran = within(training, kubectl_ckpt, verb, "run@900")
        assert ran.status == 2
        assert "Add --yes" in ran.problem
    assert training.read("checkpointsnapshots", f"run-{OLDER}")["spec"]["disposition"] == "Auto"


def test_save_waits_until_its_own_request_is_answered(kubectl_ckpt: Program, training: Namespace) -> None:
    def operate() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            request = training.read("checkpoints", "run")["spec"]["save"].get("request")
            if request:
                latest = {**STATUS["latest"], "step": 1007}  # type: ignore[dict-item]
                status = {"lastSaveRequest": request, "latest": latest}
                training.patch("checkpoints", "run", {"status": status}, status=True)
                return
            time.sleep(0.1)

    with beside(operate):
        ran = within(training, kubectl_ckpt, "save", "run", "--wait", "--timeout", "20s")
    assert ran.status == 0, ran.errors
    assert "has saved step 1007" in ran.output


def test_a_wait_that_is_in_vain_has_status_1(kubectl_ckpt: Program, training: Namespace) -> None:
    for arguments in (("save", "run", "--wait"), ("wait", "run"), ("wait", "run", "--step", "1001")):
        ran = within(training, kubectl_ckpt, *arguments, "--timeout", "1s")
        assert ran.status == 1
        assert "did not come within 1s" in ran.problem


def test_wait_finds_a_snapshot_that_is_there_already(kubectl_ckpt: Program, training: Namespace) -> None:
    ran = within(training, kubectl_ckpt, "wait", "run", "--step", "950", "--verified", "-o", "name")
    assert ran.output.strip() == NEWEST


def test_log_prints_events_in_order(kubectl_ckpt: Program, training: Namespace) -> None:
    for number, time_of_it in ((1, "2026-01-01T10:00:00Z"), (0, "2026-01-01T11:00:00Z")):
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"event-{number}", "namespace": training.name},
            "involvedObject": {"kind": "Checkpoint", "name": "run", "namespace": training.name},
            "reason": "SnapshotCommitted",
            "message": f"the one at {time_of_it}",
            "lastTimestamp": time_of_it,
        }
        training.create(body)
    lines = within(training, kubectl_ckpt, "log", "run").output.splitlines()
    assert [line.split()[0] for line in lines] == ["2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"]


def test_a_fork_is_a_checkpoint_like_the_other_one_that_begins_there(
    kubectl_ckpt: Program, training: Namespace
) -> None:
    ran = within(training, kubectl_ckpt, "fork", "run@best", "fork", "--part", "model", "--dry-run")
    written = yaml.safe_load(ran.output)
    assert written["spec"]["restore"]["startFrom"] == {"checkpoint": "run@best", "part": "model"}
    assert training.refusal(written) == ""
    assert within(training, kubectl_ckpt, "fork", "run@best", "fork", "--part", "model").status == 0
    spec = training.read("checkpoints", "fork")["spec"]
    assert (spec["storage"]["url"], spec["save"]["everySteps"]) == ("s3://bucket/fork", 500)
    assert spec["restore"]["startFrom"] == {"checkpoint": "run@best", "part": "model"}
    assert within(training, kubectl_ckpt, "fork", "run", "fork").status == 4, "it exists"
    assert within(training, kubectl_ckpt, "fork", "run", "run").status == 2


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("status", "absent"), 3, '"absent" not found'),
        (("show", "run@12345"), 3, "@12345: no snapshot has this step"),
        (("show", "run@zzz"), 3, "@zzz: no snapshot has an id that begins with it"),
        (("hold", "run"), 2, "no snapshot was named"),
        (("status", "run@best"), 2, "leave out @best"),
        (("doctor", "run@best"), 2, "leave out @best"),
        (("status", "s3://bucket/run"), 2, "A URL is for the program checkpoint"),
        (("status", "run", "--context", "absent"), 2, 'context "absent" does not exist'),
        (("status", "run", "--kubeconfig", "/absent"), 2, "no such file"),
        (("wait", "run", "--timeout", "soon"), 2, "not a duration"),
        (("doctor", "run", "--pod", "/absent"), 2, "does not exist"),
    ],
)
def test_bad_input_is_one_line_with_its_status(
    kubectl_ckpt: Program, training: Namespace, arguments: tuple[str, ...], status: int, says: str
) -> None:
    ran = within(training, kubectl_ckpt, *arguments)
    assert (ran.status, ran.output) == (status, "")
    assert says in ran.problem


def test_an_ambiguous_id_names_the_candidates(kubectl_ckpt: Program, training: Namespace) -> None:
    body = snapshot("run-1000-7-abcdefh2", path="step-1000/0007-abcdefh2")
    body["metadata"]["labels"] = {"checkpoint-operator.dev/checkpoint": "run"}
    training.create(body)
    ran = within(training, kubectl_ckpt, "show", "run@1000-7-abc")
    assert ran.status == 2
    assert NEWEST in ran.problem
    assert "1000-7-abcdefh2" in ran.problem


def test_a_missing_right_has_status_4(
    kubectl_ckpt: Program, training: Namespace, tmp_path: Path, crds: ApiServer
) -> None:
    config = yaml.safe_load(crds.kubeconfig.read_text())
    config["users"][0]["user"] |= {"as": "an-unprivileged-user"}
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    ran = within(training, kubectl_ckpt, "status", "run", "--kubeconfig", str(own))
    assert ran.status == 4
    assert "forbidden" in ran.problem


def test_no_cluster_has_status_5(
    kubectl_ckpt: Program, tmp_path: Path, crds: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = yaml.safe_load(crds.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    own = tmp_path / "kubeconfig"
    own.write_text(yaml.safe_dump(config))
    ran = kubectl_ckpt("ls", "--kubeconfig", str(own))
    assert ran.status == 5
    assert "127.0.0.1:1" in ran.problem


def test_kubectl_finds_the_plugin(kubectl_ckpt: Program, crds: ApiServer, training: Namespace) -> None:
    listed = crds.kubectl("ckpt", "ls", "-o", "name", "--namespace", training.name)
    assert listed.strip() == f"{training.name}/run"


@pytest.mark.parametrize("workload", ["Job", "JobSet", "TrainJob", "PyTorchJob", "RayJob"])
@pytest.mark.parametrize("options", [(), ("--secret=s3-keys", "--endpoint=http://s3:9000", "--every-steps=10")])
def test_what_init_writes_is_admitted(
    kubectl_ckpt: Program, anywhere: Namespace, workload: str, options: tuple[str, ...]
) -> None:
    ran = kubectl_ckpt("init", "llama-7b", "s3://training/llama-7b", "--for", workload, *options)
    own, work = yaml.safe_load_all(ran.output)
    assert anywhere.refusal(own) == ""
    assert work["kind"] == workload
    if workload == "Job":
        assert anywhere.refusal(work) == ""


def test_doctor_finds_a_run_in_order(kubectl_ckpt: Program, served: Namespace, tmp_path: Path) -> None:
    served.create(checkpoint())
    status = {**STATUS, "claimedBy": f"cluster/{served.name}/run"}
    served.patch("checkpoints", "run", {"status": status}, status=True)
    served.admitted(pod())
    report = within(served, kubectl_ckpt, "doctor", "run", "-o", "json")
    found = {each["check"]: each["result"] for each in json.loads(report.output)["items"]}
    assert found["a new pod would be injected"] == "ok"
    assert found["kinds installed"] == "ok"
    assert found["condition Ready"] == "ok"
    # Nothing runs on a bare API server.
    assert found["operator running"] == "problem"
    assert report.status == 1
    manifest = tmp_path / "job.yaml"
    manifest.write_text(kubectl_ckpt("init", "run", "s3://bucket/run", "--for", "JobSet").output)
    report = within(served, kubectl_ckpt, "doctor", "run", "--pod", str(manifest), "-o", "json")
    found = {each["check"]: each["result"] for each in json.loads(report.output)["items"]}
    assert found["a new pod would be injected"] == "ok"


def test_doctor_says_why_a_pod_would_not_be_injected(kubectl_ckpt: Program, served: Namespace, tmp_path: Path) -> None:
    served.create(checkpoint())
    manifest = tmp_path / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod("other")))
    report = within(served, kubectl_ckpt, "doctor", "run", "--pod", str(manifest))
    assert report.status == 1
    assert "the pod template has no label checkpoint-operator.dev/checkpoint: run" in report.output


class beside:  # noqa: N801 - reads as a phrase
    """Runs a function in a thread for as long as the block lasts."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=function)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
