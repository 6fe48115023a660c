"""Both programs as processes: help without heavy imports, one line for each failure, and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoint_cli.verbs import Door, verbs_of
from checkpoint_sidecar import open_run
from checkpoint_sidecar.store.access import StoreSettings
from checkpoint_sidecar.store.local.adapter import LocalStore
from support.builders import History
from support.stored import stored
from support.trainers import Trainer

PROGRAMS = {Door.BUCKET: "bucket", Door.CLUSTER: "cluster"}
DOORS = list(Door)
HEAVY = ("torch", "numpy", "kubernetes", "botocore", "fsspec", "aiohttp", "rich", "msgspec", "checkpoint_sidecar")


def program(door: Door, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{before}\nfrom checkpoint_cli import app\napp.{PROGRAMS[door]}()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("door", DOORS)
def test_help_imports_nothing_heavy(door: Door) -> None:
    shown = program(
        door,
        "--help",
        before="import atexit\natexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))",
    )
    assert shown.returncode == 0
    assert all(f"  {verb.name} " in shown.stdout and verb.summary in shown.stdout for verb in verbs_of(door))
    assert not {name.partition(".")[0] for name in shown.stderr.split()} & set(HEAVY)


def test_help_of_a_verb_of_the_bucket_imports_no_more_than_the_program_itself() -> None:
    """In one process for all verbs: each of them alone imports less."""
    code = """
import sys
from checkpoint_cli.app import load
from checkpoint_cli.verbs import BUCKET_VERBS, Door

for verb in BUCKET_VERBS:
    load(Door.BUCKET, verb)
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert not {name.partition(".")[0] for name in loaded.stdout.split()} & {*HEAVY[:-1]}


@pytest.mark.parametrize(("door", "verb"), [(door, verb.name) for door in DOORS for verb in verbs_of(door)])
def test_each_verb_has_help_with_an_example(door: Door, verb: str) -> None:
    from checkpoint_cli.app import load, program
    from checkpoint_cli.help import page

    found = next(each for each in verbs_of(door) if each.name == verb)
    text = page(door, found)
    assert f"Example: {door.value} {verb}" in text
    assert load(door, found).name == verb
    assert "Positional arguments" not in text
    arguments = text.partition("Arguments:\n")[2].partition("\n\n")[0]
    assert not [
        line for line in arguments.splitlines() if line.split()[-1:] == ["[required]"] and len(line.split()) < 4
    ]
    assert program(door).get_command(None, verb) is not None


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lss"], "No such command 'lss'"),
        (["--frobnicate"], "No such option"),
        (["completion"], "Missing argument"),
        (["completion", "tcsh"], "'tcsh' is not bash, zsh or fish"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(door: Door, arguments: list[str], says: str) -> None:
    ran = program(door, *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert says in ran.stderr
    assert ran.stderr.startswith(f"{door.value}: ")
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(door: Door, shell: str) -> None:
    script = program(door, "completion", shell)
    name = "checkpoint" if door is Door.BUCKET else "kubectl-ckpt"
    assert script.returncode == 0
    assert name in script.stdout
    assert f"_{name.upper().replace('-', '_')}_COMPLETE" in script.stdout


@pytest.mark.parametrize("door", DOORS)
def test_a_shell_gets_the_verbs_that_fit(door: Door) -> None:
    name = "checkpoint" if door is Door.BUCKET else "kubectl-ckpt"
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    environment = {variable: "complete_bash", "COMP_WORDS": f"{name} compl", "COMP_CWORD": "1"}
    assert program(door, before=f"import os\nos.environ.update({environment})").stdout.split() == ["completion"]


def test_kubectl_gets_the_verbs_that_fit_from_the_script_for_it(tmp_path: Path) -> None:
    script = tmp_path / "kubectl_complete-ckpt"
    script.write_text(program(Door.CLUSTER, "completion", "kubectl").stdout)
    script.chmod(0o755)
    found = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    completed = subprocess.run(
        [script, "sta"], capture_output=True, text=True, timeout=60, check=True, env={**os.environ, "PATH": found}
    )
    assert completed.stdout.split() == ["status", ":4"]
    assert program(Door.BUCKET, "completion", "kubectl").returncode == 2


OBEY = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""First line of programs: where tests run in the background of a shell, SIGINT is ignored, also by what they start."""

SLOWLY = f"""
{OBEY}
import sys, time
from checkpoint_sidecar.manage import copying

read = copying._Stored.view

def slowly(*arguments):
    print("reading", flush=True)
    time.sleep(2)
    return read(*arguments)

copying._Stored.view = slowly
from checkpoint_cli import app
app.bucket()
"""


def test_ctrl_c_during_a_copy_leaves_nothing_half_written_and_the_next_one_ends_it(tmp_path: Path) -> None:
    source, target = ((tmp_path / name).as_uri() for name in ("run", "copy"))
    Trainer(LocalStore(StoreSettings(source))).start().commit(100)
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, "copy", source, target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "checkpoint: interrupted\n")
    assert not list((tmp_path / "copy").rglob("*.distcp"))
    assert open_run(target).snapshots() == ()
    assert program(Door.BUCKET, "copy", source, target).returncode == 0
    assert [each.step for each in open_run(target).snapshots()] == [100]


def test_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    assert program(Door.BUCKET, "--version").stdout == f"checkpoint {version('checkpoint-operator')}\n"


def test_a_closed_pipe_ends_quietly() -> None:
    code = "from checkpoint_cli import app; app.bucket(['--help'])"
    shown = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{code}" | true; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stderr == ""
    assert shown.stdout.strip() in ("0", "141")


@pytest.fixture
def long_run(tmp_path: Path) -> str:
    """The URL of a run whose list fills the buffer of a pipe many times."""
    address = (tmp_path / "run").as_uri()
    history = History().started().committed(*range(1000))
    stored(history, LocalStore(StoreSettings(address)))
    return address


def test_a_reader_that_leaves_early_ends_the_program_quietly(long_run: str) -> None:
    code = f"from checkpoint_cli import app; app.bucket(['ls', '{long_run}', '-o', 'wide'])"
    shown = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{code}" | head -n 1; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stderr == ""
    assert shown.stdout.splitlines()[0].startswith("STEP")
    assert shown.stdout.splitlines()[1] == "141"


@pytest.mark.parametrize("verb", ["log", "follow"])
def test_ctrl_c_ends_a_program_that_waits_with_status_130(long_run: str, verb: str) -> None:
    options = ["-f"] if verb == "log" else []
    command = [sys.executable, "-c", f"{OBEY}; from checkpoint_cli import app; app.bucket()", verb, long_run, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if verb == "log":
                assert "claimed the prefix" in process.stdout.readline()
            else:
                time.sleep(2)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert errors == "checkpoint: interrupted\n"
