"""Servers for fsspec's filesystems, on loopback: OpenSSH's sshd and WsgiDAV."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emulators.servers import free_port, running

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def sshd_problem() -> str:
    """Why sshd cannot be run, or an empty string."""
    if not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        return "sshd is not installed: .ci/bootstrap installs Debian's openssh-server"
    return ""


@contextlib.contextmanager
def sshd(folder: Path) -> Iterator[dict[str, Any]]:
    """Serve SFTP to this user with a host key and a login key of its own.

    Args:
        folder: For keys and configuration; empty.

    Yields:
        What ``fsspec.filesystem("sftp", ...)`` takes.
    """
    for name in ("host", "login"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    (folder / "authorized").write_text((folder / "login.pub").read_text())
    port = free_port()
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        "MaxStartups 100\nSubsystem sftp internal-sftp\n"
    )
    if os.geteuid() == 0:
        # sshd gives up its rights in this folder, which Debian makes when its service starts.
        Path("/run/sshd").mkdir(exist_ok=True, mode=0o755)
    with running([SSHD, "-D", "-q", "-f", str(folder / "config")], port):
        yield {
            "host": "127.0.0.1",
            "port": port,
            "username": getpass.getuser(),
            "key_filename": str(folder / "login"),
            "allow_agent": False,
            "look_for_keys": False,
        }


@contextlib.contextmanager
def webdav(folder: Path) -> Iterator[str]:
    """Serve a folder over WebDAV, and yield the URL."""
    port = free_port()
    program = (
        "import sys; from cheroot.wsgi import Server; from wsgidav.wsgidav_app import WsgiDAVApp\n"
        "app = WsgiDAVApp({'provider_mapping': {'/': sys.argv[1]}, 'verbose': 0, 'logging': {'enable': False},"
        " 'simple_dc': {'user_mapping': {'*': True}}})\n"
        "Server(('127.0.0.1', int(sys.argv[2])), app, numthreads=20).start()"
    )
    with running([sys.executable, "-c", program, str(folder), str(port)], port):
        yield f"http://127.0.0.1:{port}"
