"""A model is saved and loaded through a filesystem that was handed in."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from checkpoint_sidecar import Checkpointer, CheckpointReader, CheckpointWriter
from checkpoint_sidecar.core.errors import NoConditionalWriteError
from emulators import filesystems


def _model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))


def _train(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(16, 64)).square().mean().backward()
    optimizer.step()


def _run(url: str, total: int, seed: int, **where: Any) -> tuple[list[int], torch.nn.Module]:
    """The steps that a process trains, and what it ends with."""
    model = _model(seed)
    optimizer = torch.optim.AdamW(model.parameters())
    trained = []
    with Checkpointer({"model": model, "optimizer": optimizer}, url, **where) as checkpointer:
        for step in checkpointer.steps(total):
            _train(model, optimizer)
            trained.append(step)
            checkpointer.step(step)
    return trained, model


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_continues_where_it_ended_through_a_url_of_fsspec() -> None:
    url = f"memory://{secrets.token_hex(6)}/run"

    first, saved = _run(url, 3, seed=1, storage_options={"skip_instance_cache": True})
    second, restored = _run(url, 3, seed=2)

    assert (first, second) == ([1, 2, 3], [])
    assert _same(saved, restored)


@pytest.mark.store
def test_a_run_continues_where_it_ended_on_an_sftp_server(tmp_path: Path) -> None:
    if problem := filesystems.sshd_problem():
        pytest.skip(problem)
    (tmp_path / "sshd").mkdir()
    with filesystems.sshd(tmp_path / "sshd") as options:
        fs = fsspec.filesystem("sftp", **options)
        where = str(tmp_path / "runs" / "llama")
        first, saved = _run(where, 2, seed=1, filesystem=fs)
        second, _ = _run(where, 4, seed=2, filesystem=fs)
        third, restored = _run(where, 2, seed=3, filesystem=fs)

    assert (first, second, third) == ([1, 2], [3, 4], [])
    assert not _same(saved, restored)  # it holds step 4
    assert (tmp_path / "runs" / "llama" / "_log").is_dir()


def test_a_checkpoint_is_written_and_read_by_dcp_through_a_filesystem() -> None:
    fs = fsspec.filesystem("memory")
    path = f"/{secrets.token_hex(6)}/checkpoint"
    saved, loaded = _model(1), _model(2)

    state_dict_saver.save(saved.state_dict(), storage_writer=CheckpointWriter(path, filesystem=fs))
    state = loaded.state_dict()
    state_dict_loader.load(state, storage_reader=CheckpointReader(path, filesystem=fs))
    loaded.load_state_dict(state)

    assert _same(saved, loaded)


def test_a_checkpoint_is_not_written_where_a_create_replaces(monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory", skip_instance_cache=True)
    original = type(fs).pipe_file
    monkeypatch.setattr(type(fs), "pipe_file", lambda self, path, value, **_: original(self, path, value))

    with pytest.raises(CheckpointException) as raised:
        state_dict_saver.save(_model(1).state_dict(), storage_writer=CheckpointWriter("/run", filesystem=fs))
    assert any(isinstance(error, NoConditionalWriteError) for error, _ in raised.value.failures.values())
