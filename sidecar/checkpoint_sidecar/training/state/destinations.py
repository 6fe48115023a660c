"""Decides where each item of a snapshot is loaded, from the snapshot's contents.

A tensor of a module goes straight into the module's memory. State of an optimizer goes into new memory, shaped and
sharded like the parameter it belongs to. All other items are rebuilt as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn import Module

from checkpoint_sidecar.training.state import modules
from checkpoint_sidecar.training.state.contents import Contents, Ref, is_extra, is_tensor, refs_in
from checkpoint_sidecar.training.state.forms import (
    Form,
    Opaque,
    allocate_like,
    allocate_on,
    is_uninitialized,
    wrapped_like,
)
from checkpoint_sidecar.training.state.leftovers import Leftovers
from checkpoint_sidecar.training.state.optimizers import NamedOptimizer, OptimizerState


class Destinations:
    """Items to load, and their destinations.

    Args:
        contents: Contents of the snapshot.
        meshes: Device meshes of the live modules.
        rank: This process's rank.

    Attributes:
        items: By item name: a tensor to fill, or None for an object to read.
        leftovers: The mismatches.
    """

    def __init__(self, contents: Contents, meshes: list[DeviceMesh], rank: int) -> None:
        self._contents = contents
        self._meshes = meshes
        self._rank = rank
        self._wrapped: dict[str, tuple[str, DTensor]] = {}
        self.items: dict[str, Any] = {}
        self.leftovers = Leftovers()

    def add_module(
        self, name: str, module: Module, state: Mapping[str, Any], ties: list[tuple[str, ...]] | None
    ) -> None:
        """Load a module's state dict into the module's own memory.

        Args:
            state: As described by the snapshot.
            ties: Groups of names that were one parameter; None if unknown.
        """
        live = modules.module_state(module)
        flexible: set[str] | None = None
        for key in sorted(live.keys() - state.keys()):
            self.leftovers.missing.add(f"{name}.{key}")
        for key, stored in state.items():
            present = live.get(key)
            place = f"{name}.{key}"
            fits = isinstance(stored, Ref) and is_tensor(present) and not is_uninitialized(present)
            if fits and _same(present, stored.form) and not stored.form.opaque:
                self._put(stored, _writable(present))
                continue
            if flexible is None:
                flexible = modules.replaceable(module)
            extra = is_extra(key)
            if key not in live and key not in flexible:
                self.leftovers.unused.add(place)
            elif isinstance(stored, Ref) and (extra or key in flexible or stored.form.opaque):
                self._add(stored, present if is_tensor(present) and not is_uninitialized(present) else None)
            elif isinstance(stored, Ref) and present is not None and is_tensor(present):
                self.leftovers.misfits.add(
                    f"{place} was saved as {stored.form.dtype} {list(stored.form.shape)} and is "
                    f"{str(present.dtype).removeprefix('torch.')} {list(present.size())} here"
                )
            elif (isinstance(stored, Ref) or is_tensor(present)) and not extra:
                self.leftovers.misfits.add(f"{place} is a tensor on one side only")
            # Tensors inside an extra state that is an object now.
            if not isinstance(stored, Ref):
                for ref in refs_in(stored):
                    self._add(ref, None)
        for group in modules.tied_names(module) if ties is not None else ():
            saved = [name for name in group if name in state]
            if len(saved) > 1 and not any(set(saved) <= set(tied) for tied in ties or ()):
                self.leftovers.misfits.add(f"{name}: {', '.join(saved)} are one parameter here, and were several")

    def add_optimizer(self, name: str, optimizer: NamedOptimizer, saved: OptimizerState) -> None:
        """Load state of parameters into new memory that is shaped and sharded like them."""
        missing, unused = optimizer.misfits(saved)
        self.leftovers.missing.update(f"{name}.{each}" for each in missing)
        self.leftovers.unused.update(f"{name}.{each}" for each in unused)
        parameters = optimizer.homes()
        for parameter, state in saved.state.items():
            if parameter in parameters:
                for ref in refs_in(state):
                    self._add(ref, parameters[parameter])
        for ref in refs_in([saved.groups, saved.loose, saved.rest]):
            self._add(ref, None)

    def add_refs(self, state: Any, counterparts: Mapping[str, Any] | None = None) -> None:
        """Load tensors of an object that is not sharded.

        Args:
            counterparts: The object's present sharded tensors, by item name.
        """
        for ref in refs_in(state):
            self._add(ref, (counterparts or {}).get(ref.item))

    def add_object(self, item: str) -> None:
        """Read an item that is not a tensor."""
        self.items[item] = None

    def add_whole(self, item: str) -> None:
        """Load an object, or load a tensor whose owner is not known yet into host memory."""
        form = self._contents.tensors.get(item)
        self.items[item] = torch.empty(form.shape, dtype=form.torch_dtype) if form else None

    def loaded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the loaded values, by the names that the described states use."""
        found = {item: value.tensor if isinstance(value, Opaque) else value for item, value in values.items()}
        for item, (own, like) in self._wrapped.items():
            found[item] = wrapped_like(like, found[own])
        return found

    def _add(self, ref: Ref, like: Any) -> None:
        """Allocate a tensor.

        Args:
            like: The tensor that it belongs to.
        """
        form, listed = ref.form, self._contents.tensors.get(ref.item)
        if form.opaque:
            self._add_opaque(ref, like)
            return
        if listed is None or (listed.shape, listed.dtype) != (form.shape, form.dtype):
            self.leftovers.misfits.add(f"{ref.item} is described, and not stored as it is described")
            return
        known = like is not None and not is_uninitialized(like)
        belongs = form.like or form.distributed or (ref.flattened and form.shape)
        if known and belongs and tuple(like.size()) == form.shape:
            self._put(ref, allocate_like(like, form.torch_dtype))
            return
        if form.sharded and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            self.leftovers.misfits.add(f"{ref.item} is a ShardedTensor, and nothing here says how it is sharded")
            return
        if form.placements is not None and (mesh := self._mesh(form, like)) is not None:
            self._put(ref, allocate_on(mesh, form))
            return
        beside = known and form.device != "cpu" and not ref.flattened
        device = like.device if beside and not isinstance(like, ShardedTensor) else form.home()
        self._put(ref, torch.empty(form.shape, dtype=form.torch_dtype, device=device))

    def _add_opaque(self, ref: Ref, like: Any) -> None:
        if not ref.form.distributed:
            self.items[ref.item] = None
            return
        own = f"{ref.item}.rank-{self._rank:05d}"
        if own not in self._contents.objects or not isinstance(like, DTensor) or tuple(like.shape) != ref.form.shape:
            self.leftovers.misfits.add(
                f"{ref.item} was saved in parts that cannot be divided anew: start with as many ranks as saved it"
            )
            return
        self._wrapped[ref.item] = (own, like)
        self.items[own] = None

    def _put(self, ref: Ref, destination: Any) -> None:
        self.items[ref.item] = destination

    def _mesh(self, form: Form, like: Any) -> DeviceMesh | None:
        if isinstance(like, DTensor):
            return like.device_mesh
        fitting = [mesh for mesh in self._meshes if mesh.ndim == len(form.placements or ())]
        named = [mesh for mesh in fitting if mesh.mesh_dim_names == form.mesh_names]
        return next(iter((*named, *fitting, *self._meshes)), None)


def _same(present: Any, form: Form) -> bool:
    return tuple(present.size()) == form.shape and present.dtype == form.torch_dtype


def _writable(tensor: Any) -> Any:
    """Return the tensor itself, or new memory like it if several of its elements share memory."""
    if isinstance(tensor, torch.Tensor) and not isinstance(tensor, DTensor | ShardedTensor):
        overlaps = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) if overlaps else tensor
    return tensor
