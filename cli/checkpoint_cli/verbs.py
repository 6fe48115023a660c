"""The verbs of both programs: where each is, and its line in the help. Their modules are imported when they run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Door(StrEnum):
    """The two programs."""

    BUCKET = "checkpoint"
    CLUSTER = "kubectl ckpt"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Attributes:
        place: Module below ``checkpoint_cli`` and function in it: ``cluster.reading:ls``.
        summary: Its line in the list of verbs.
    """

    name: str
    place: str
    summary: str


_COMPLETION = Verb("completion", "completion:command", "Print the completion script of a shell.")

BUCKET_VERBS: tuple[Verb, ...] = (
    Verb("ls", "bucket.reading:ls", "List the snapshots of a run."),
    Verb("show", "bucket.reading:show", "Show all that is known of one snapshot."),
    Verb("status", "bucket.reading:status", "Show a run on one screen."),
    Verb("log", "bucket.reading:log", "Tell the story of a run from its log."),
    Verb("tree", "bucket.inspecting:tree", "List the modules and tensors of a snapshot."),
    Verb("diff", "bucket.inspecting:diff", "Compare two snapshots, of one run or of two."),
    Verb("verify", "bucket.verify:verify", "Compare stored objects with what was committed."),
    Verb("export", "bucket.export:export", "Write a snapshot's tensors as safetensors or torch.save."),
    Verb("wait", "bucket.reading:wait", "Wait for a snapshot."),
    Verb("follow", "bucket.reading:follow", "Print each new snapshot as soon as it is committed."),
    Verb("save", "bucket.changing:save", "Ask training to save at its next step."),
    Verb("rollback", "bucket.changing:rollback", "Let the next start restore an older snapshot."),
    Verb("hold", "bucket.changing:hold", "Keep a snapshot, whatever the policy says."),
    Verb("release", "bucket.changing:release", "Leave a snapshot to the policy again."),
    Verb("retire", "bucket.changing:retire", "Give a snapshot up."),
    Verb("copy", "bucket.copying:copy", "Copy snapshots to another store or prefix."),
    Verb("republish", "bucket.copying:republish", "Let torch's own reader find shared files of a moved run."),
    Verb("rm", "bucket.removing:rm", "Delete snapshots at once."),
    Verb("fork", "bucket.fork:fork", "Let a new run begin at a snapshot of another one."),
    Verb("prune", "bucket.changing:prune", "Carry out the retention policy of a run."),
    Verb("doctor", "bucket.doctor:doctor", "Check a store, the run in it, and the versions here."),
    Verb("bundle", "bucket.bundle:bundle", "Write an archive for a support request, without secrets."),
    Verb("report", "bucket.report:command", "Write one HTML page about a run."),
    Verb("ui", "bucket.ui:command", "Show runs in a browser, live."),
    _COMPLETION,
)

CLUSTER_VERBS: tuple[Verb, ...] = (
    Verb("ls", "cluster.reading:ls", "List the runs of a namespace, or the snapshots of one run."),
    Verb("show", "cluster.reading:show", "Show all that is known of one snapshot."),
    Verb("status", "cluster.reading:status", "Show a run on one screen."),
    Verb("log", "cluster.reading:log", "Print the Events of a run."),
    Verb("save", "cluster.changing:save", "Ask training to save at its next step."),
    Verb("wait", "cluster.changing:wait", "Wait for a snapshot."),
    Verb("rollback", "cluster.changing:rollback", "Let the next start restore an older snapshot."),
    Verb("hold", "cluster.changing:hold", "Keep a snapshot, whatever the policy says."),
    Verb("release", "cluster.changing:release", "Leave a snapshot to the policy again."),
    Verb("retire", "cluster.changing:retire", "Give a snapshot up."),
    Verb("fork", "cluster.fork:fork", "Create a Checkpoint that begins at a snapshot of another run."),
    Verb("doctor", "cluster.doctor:doctor", "Check the installation, a run, and whether pods are injected."),
    Verb("bundle", "cluster.bundle:bundle", "Write an archive for a support request, without secrets."),
    Verb("report", "cluster.pages:report", "Write one HTML page about a run."),
    Verb("ui", "cluster.pages:ui", "Show runs in a browser, live."),
    Verb("init", "cluster.init:init", "Write the YAML of a new run."),
    _COMPLETION,
)


def verbs_of(door: Door) -> tuple[Verb, ...]:
    """Return the verbs of a program in the order of its help."""
    return BUCKET_VERBS if door is Door.BUCKET else CLUSTER_VERBS
