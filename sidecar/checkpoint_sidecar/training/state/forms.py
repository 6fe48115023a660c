"""Describes tensors, without their elements, as plain data, and allocates memory for similar ones."""

from __future__ import annotations

import copy
import io
from typing import Any, NamedTuple

import torch
from torch.distributed._shard.sharded_tensor import Shard as LocalShard
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, empty
from torch.nn import Parameter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from checkpoint_sidecar.training.dcp.memory import is_plain


class Form(NamedTuple):
    """A tensor without its elements. A tuple, because each save creates one for each tensor.

    Attributes:
        dtype: Its name in torch.
        device: Its type: a tensor from any GPU returns to the current one.
        parameter, grad: Whether it is a ``Parameter``, and whether it requires a gradient.
        like: Whether it has the shape and the sharding of the parameter it belongs to.
        placements: A ``DTensor``'s placements, one for each dimension of its mesh; None for other tensors.
        mesh_names: Names of that mesh's dimensions, if they have any.
        sharded: Whether it is a ``ShardedTensor``.
        raw: Whether it holds the bytes of another value, such as an array.
        opaque: Whether it, or a rank's part of it, is more than its elements: a subclass, sparse, quantized.
        strides: Its strides, unless it is in row-major order or laid out as the parameter it is ``like``. With
            another layout, matrix products of equal numbers may differ in the last bit.
    """

    dtype: str
    shape: tuple[int, ...]
    device: str = "cpu"
    parameter: bool = False
    grad: bool = False
    like: bool = False
    placements: tuple[str, ...] | None = None
    mesh_names: tuple[str, ...] | None = None
    sharded: bool = False
    raw: bool = False
    opaque: bool = False
    strides: tuple[int, ...] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        found = torch.__dict__.get(self.dtype)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"torch.{self.dtype} is not a dtype")
        return found

    @property
    def nbytes(self) -> int:
        return torch.Size(self.shape).numel() * self.torch_dtype.itemsize

    @property
    def distributed(self) -> bool:
        return self.placements is not None or self.sharded

    def encode(self) -> dict[str, Any]:
        """Return values that MessagePack can hold. Fields with their default are left out."""
        return {name: value for value, (name, default) in zip(self, _DEFAULTS, strict=True) if value != default}

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Form:
        """Rebuild a form. Fields of later versions are ignored."""
        known = {name: value for name, value in data.items() if name in cls._fields}
        for name in ("shape", "placements", "mesh_names", "strides"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        return cls(**{"dtype": "", "shape": ()} | known)

    def home(self) -> torch.device:
        """Return the device that a tensor of this form is restored to, unless another tensor decides."""
        if self.device == "cpu":
            return torch.device("cpu")
        backend = getattr(torch, self.device, None)
        if backend is None or not backend.is_available():
            return torch.device("cpu")
        return torch.device(self.device, backend.current_device())

    def finish(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a loaded tensor as it was: its device, layout, ``Parameter`` class and ``requires_grad``."""
        if not self.distributed and not self.like and self.device != "cpu" and tensor.device.type == "cpu":
            tensor = tensor.to(self.home())
        if self.strides is not None and tensor.stride() != self.strides:
            tensor = torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype, device=tensor.device).copy_(
                tensor
            )
        if self.parameter:
            return Parameter(tensor, requires_grad=self.grad)
        return tensor.requires_grad_() if self.grad else tensor


_DEFAULTS = tuple(zip(Form._fields, Form("", ()), strict=True))


def describe(tensor: Any) -> Form:
    """Return the form of a tensor.

    Raises:
        ValueError: The tensor has no elements, or no rank has them; the message says which.
    """
    if is_uninitialized(tensor):
        raise ValueError("is not initialized yet: run the module once before the first save")
    sharded = isinstance(tensor, ShardedTensor)
    # A tensor of which this rank has no part raises an error here.
    if not sharded and tensor.is_meta:
        raise ValueError("is on the meta device and has no elements: move the module with to_empty(device=...)")
    names: tuple[str, ...] | None = None
    placements: tuple[str, ...] | None = None
    if isinstance(tensor, DTensor):
        if any(isinstance(placement, Partial) for placement in tensor.placements):
            raise ValueError("is a DTensor of partial sums, which have no value yet: redistribute it")
        placements = tuple(map(_encode, tensor.placements))
        names = tensor.device_mesh.mesh_dim_names
    parameter = isinstance(tensor, Parameter)
    opaque = not sharded and not is_plain(elements(tensor))
    in_order = sharded or placements is not None or opaque or tensor.is_contiguous()
    return Form(
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.size()),
        device="cpu" if sharded else tensor.device.type,
        parameter=parameter,
        grad=not sharded and bool(tensor.requires_grad and (parameter or tensor.is_leaf)),
        placements=placements,
        mesh_names=names,
        sharded=sharded,
        opaque=opaque,
        strides=None if in_order else strides_of(tensor),
    )


def strides_of(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """Return the strides of a tensor whose elements fill its memory once, in any order; None for others."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return None
        expected *= size
    return tensor.stride()


def is_uninitialized(tensor: Any) -> bool:
    """Return whether a lazy module has not created this parameter or buffer yet."""
    return isinstance(tensor, UninitializedTensorMixin)


def elements(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a tensor, without a gradient."""
    local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return local.detach()


def is_like(tensor: Any, parameter: Any) -> bool:
    """Return whether a tensor is shaped and sharded like a parameter."""
    if tuple(tensor.size()) != tuple(parameter.size()) or isinstance(tensor, DTensor) != isinstance(parameter, DTensor):
        return False
    if isinstance(tensor, DTensor):
        return bool(tensor.placements == parameter.placements and tensor.device_mesh == parameter.device_mesh)
    return isinstance(tensor, ShardedTensor) == isinstance(parameter, ShardedTensor)


def allocate_like(model: Any, dtype: torch.dtype) -> Any:
    """Allocate a tensor of a dtype, shaped and sharded like another one."""
    if isinstance(model, ShardedTensor):
        metadata = copy.deepcopy(model.metadata())
        properties = metadata.tensor_properties
        metadata.tensor_properties = TensorProperties(
            dtype, properties.layout, False, properties.memory_format, properties.pin_memory
        )
        shards = [
            LocalShard(torch.empty_like(shard.tensor, dtype=dtype, requires_grad=False), shard.metadata)
            for shard in model.local_shards()
        ]
        return ShardedTensor._init_from_local_shards_and_global_metadata(
            shards, sharded_tensor_metadata=metadata, process_group=model._process_group, init_rrefs=False
        )
    local = elements(model)
    memory = (
        torch.empty_like(local, dtype=dtype)
        if is_plain(local) and not local.is_meta
        else torch.empty(local.shape, dtype=dtype, device=local.device)
    )
    return wrapped_like(model, memory) if isinstance(model, DTensor) else memory


def wrapped_like(model: DTensor, local: torch.Tensor) -> DTensor:
    """Return the distributed tensor whose part on this rank is ``local``, distributed like another one."""
    return DTensor.from_local(
        local, model.device_mesh, model.placements, run_check=False, shape=model.shape, stride=model.stride()
    )


def allocate_on(mesh: DeviceMesh, form: Form) -> DTensor:
    """Allocate a ``DTensor`` of this form. On a mesh with other dimensions, every rank gets all of it."""
    placements = [_decode(each) for each in form.placements or ()]
    if len(placements) != mesh.ndim:
        placements = [Replicate() for _ in range(mesh.ndim)]
    return empty(form.shape, dtype=form.torch_dtype, device_mesh=mesh, placements=placements)


class Opaque:
    """A tensor that is more than its elements, as one object: DCP neither cuts it nor reshards it.

    It is pickled as the tensor itself, so every reader gets the tensor.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def refused(self, *, trusted: bool) -> str:
        """Return why it could not be read back, as the end of a sentence, or an empty string."""
        stream = io.BytesIO()
        try:
            torch.save(self.tensor.cpu(), stream)
            stream.seek(0)
            torch.load(stream, weights_only=not trusted)
        except Exception as error:  # noqa: BLE001 - classes of others fail here in every possible way
            return f"a safe load refuses it: {str(error).splitlines()[0]}"
        return ""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.tensor.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        # The copy to host memory, before an upload.
        return Opaque(self.tensor.detach().to("cpu", copy=True))


def _encode(placement: Placement) -> str:
    if isinstance(placement, Replicate):
        return "R"
    if type(placement) is Shard:
        return f"S{placement.dim}"
    # torch's metadata cannot describe how such shards interleave, so they are assembled by their offsets.
    return f"S{placement.dim}" if hasattr(placement, "dim") else "R"


def _decode(placement: str) -> Placement:
    return Replicate() if placement == "R" else Shard(int(placement[1:]))
