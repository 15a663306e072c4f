"""A device that is not the CPU, simulated: its tensors lie in main memory, and no operation takes them with the CPU's.

So what a GPU refuses, tensors of two devices in one operation, is refused where there is none. What a GPU computes, how
fast and in how much memory, is not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

OTHER = torch.device("xla", 0)
"""A kind of device that torch knows the name of and this build has no kernels for."""
COPIES = ("aten::copy_", "aten::_to_copy")
INDEXED = ("aten::index", "aten::index_put", "aten::index_put_")
"""Whose places may be told on the CPU."""


class Away(Tensor):
    """A tensor on it: `near` holds its numbers; to torch itself it is one without any, of which gradients can be."""

    near: Tensor
    device = property(lambda self: OTHER)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __new__(cls, near: Tensor) -> Away:
        made: Away = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=torch.device("meta"), requires_grad=near.requires_grad,
        )  # fmt: skip
        made.near = near
        return made

    def tolist(self) -> Any:
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, args, kwargs or {})


def computed(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the operation gives, on the device that it runs on. RuntimeError where it is given tensors of both."""
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    away, name = any(isinstance(one, Away) for one in tensors), op._schema.name
    mixed = [one for one in tensors if away and one.dim() and not isinstance(one, Away)]
    if mixed and name not in COPIES and not (name in INDEXED and isinstance(args[0], Away)):
        raise RuntimeError(f"{name} mixes devices: {[(type(one).__name__, tuple(one.shape)) for one in tensors]}")
    places = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    away = places[0].type != "cpu" if places else away
    there, told = tree_map(_near, (args, kwargs))
    if name == "aten::histc":  # only a GPU counts whole numbers
        there = [there[0].float(), *there[1:]]
    with torch.no_grad():
        made = op(*there, **told)
    if op._schema.is_mutable:
        return kwargs.get("out", args[0])
    return tree_map(_far, made) if away else made


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Away) else torch.device("cpu") if isinstance(value, torch.device) else value


def _far(value: Any) -> Any:
    return Away(value) if isinstance(value, Tensor) else value


class _Computing(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(op, args, kwargs or {})


class _Making(TorchFunctionMode):
    """Tensors of Python's numbers, which torch makes beneath all of that."""

    def __torch_function__(self, made: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = dict(kwargs or {})
        if made in (torch.tensor, torch.as_tensor) and told.get("device") is not None:
            place = told.pop("device")
            return made(*tree_map(_near, args), **told).to(place)
        return made(*args, **told)


@contextmanager
def other_device() -> Iterator[None]:
    """It is there as long as the block lasts. Tensors made in inference mode can not be on it: it is `no_grad` here."""
    inference = patch.object(torch._C, "_InferenceMode", lambda on: torch.set_grad_enabled(not on))
    module = patch.object(torch, OTHER.type, SimpleNamespace(_initialized=False), create=True)
    with inference, module, _Making(), _Computing():
        yield


def move(module: nn.Module) -> None:
    """All that `module` holds is on it now, as `.to` would do; one weight in two places stays one."""
    known: dict[int, nn.Parameter] = {}
    for inner in module.modules():
        for name, weight in inner._parameters.items():
            if weight is not None:
                known.setdefault(id(weight), nn.Parameter(Away(weight.data), weight.requires_grad))
                inner._parameters[name] = known[id(weight)]
        inner._buffers.update({name: Away(one) for name, one in inner._buffers.items() if one is not None})
