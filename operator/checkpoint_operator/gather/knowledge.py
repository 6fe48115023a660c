"""What the operator keeps between passes, Checkpoint by Checkpoint. A restart loses all of it without harm."""

from __future__ import annotations

from collections.abc import Mapping

from checkpoint_operator.decide.quota import Quotas
from checkpoint_operator.gather.bare_pods import BarePods
from checkpoint_operator.gather.memory import Memory
from checkpoint_operator.gather.nodes import Nodes
from checkpoint_operator.gather.prefixes import Prefixes
from checkpoint_operator.gather.redaction import Redactor
from checkpoint_operator.gather.warm_starts import WarmStarts
from checkpoint_operator.model.observed import Key


class Knowledge:
    """Filled by the watches and by the passes, and read by the passes.

    Args:
        quotas: See ``Quotas``.

    Attributes:
        redactor: Values of Secrets, which no text may show.
        prefixes: Where in which store each Checkpoint keeps its run.
        quotas: What each demands of the quota of its namespace.
        nodes: What nodes announce, and which Checkpoints have pods there.
        bare_pods: Pods that only the operator would create again.
        warm_starts: Which Checkpoints are about to begin at snapshots of others.
    """

    def __init__(self, *, redactor: Redactor, quotas: Mapping[str, int]) -> None:
        self.redactor = redactor
        self.prefixes = Prefixes()
        self.quotas = Quotas(quotas)
        self.nodes = Nodes()
        self.bare_pods = BarePods()
        self.warm_starts = WarmStarts()
        self._memories: dict[Key, Memory] = {}

    def memory(self, key: Key) -> Memory:
        """What the passes over this Checkpoint hand on to the next; empty before the first."""
        return self._memories.setdefault(key, Memory())

    def forget(self, key: Key) -> tuple[Key, ...]:
        """Forget a Checkpoint that is gone.

        Returns:
            The others for which that matters: they get a prefix or a part of the quota, or name this one.
        """
        self._memories.pop(key, None)
        self.redactor.forget(key)
        self.nodes.forget(key)
        self.bare_pods.forget(key)
        return (*self.prefixes.forget(key), *self.quotas.forget(key), *self.warm_starts.forget(key))
