"""How exact matrix products are, and what stays in float32 whatever `precision` says of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

Owner = TypeVar("Owner")
Inputs = ParamSpec("Inputs")
Answer = TypeVar("Answer")


def use_tf32(used: bool) -> None:
    """Whether a GPU rounds what it multiplies in float32 to 10 bits; cuDNN's recurrences would if nothing were said."""
    torch.set_float32_matmul_precision("high" if used else "highest")
    torch.backends.cudnn.allow_tf32 = used


def warn_of_slow_bfloat16(setting: str, faster: str, device: torch.device) -> None:
    """Say that ``setting`` asks for products of bfloat16 on a CPU without AVX512, which takes several times as long."""
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        warnings.warn(f"{setting}: this CPU has no products of that type; {faster} is much faster", stacklevel=3)


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """No autocast on a type of device, and no TF32: for small differences of large numbers."""
    used = torch.backends.cudnn.allow_tf32
    use_tf32(False)
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        use_tf32(used)


def in_float32(
    method: Callable[Concatenate[Owner, Inputs], Answer],
) -> Callable[Concatenate[Owner, Inputs], Answer]:
    """``method`` without autocast, the floating tensors among its positional inputs as float32.

    For what ends in a value: bfloat16 has 8 bits, so that values around 50 would be a quarter apart, which is as much
    as the errors that are learned of.
    """

    @wraps(method)
    def exact(self: Owner, *inputs: Inputs.args, **named: Inputs.kwargs) -> Answer:
        device = next(each for each in inputs if isinstance(each, Tensor)).device.type
        if not torch.is_autocast_enabled(device):
            return method(self, *inputs, **named)
        with torch.autocast(device, enabled=False):
            return method(self, *(_widened(each) for each in inputs), **named)  # type: ignore[arg-type]

    return cast(Callable[Concatenate[Owner, Inputs], Answer], exact)


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
