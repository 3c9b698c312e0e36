"""A GRU over whole episodes: on a CPU, one product for all inputs and one for all weight gradients.

`torch.nn.GRU` runs some thirty small kernels a step when it trains on a CPU. Here a step is six forward and three
backward, in place; the rest is done for all steps at once. On a GPU cuDNN does the same, and is used.

Shapes beside those of `marl.types`: R rows, which are sequences side by side · S networks of one size, stacked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional


def unroll(rnn: nn.GRU, inputs: Tensor) -> Tensor:
    """What `rnn`, of one layer, remembers at every step from a zero memory: (T, R, I) -> (T, R, H)."""
    if inputs.is_cuda:
        histories: Tensor = (rnn(inputs.transpose(0, 1))[0].transpose(0, 1)) if rnn.batch_first else rnn(inputs)[0]
        return histories
    return unroll_stacked(inputs, *rnn.all_weights[0])


@torch.compiler.disable  # a compiler would write out every step, and take minutes for long episodes
def unroll_stacked(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """What one GRU, or S of them side by side, remember at every step from a zero memory.

    ``inputs`` (T, R, I) with weights as `torch.nn.GRU` has them, (3H, I), (3H, H), (3H,), (3H,) -> (T, R, H); or all
    of them with S in front -> (S, T, R, H). Equal to `torch.nn.GRU` up to rounding (1e-6 of float32). Under autocast
    the product with the inputs is in the lower type, the recurrence in float32.
    """
    hidden = w_hh.shape[-1]
    shared, own = b_hh.split([2 * hidden, hidden], -1)
    bias = b_ih + functional.pad(shared, (0, hidden))
    if w_hh.dim() == 2:
        return _recur(functional.linear(inputs, w_ih, bias), w_hh, own)
    rows = inputs.flatten(1, 2) @ w_ih.transpose(1, 2) + bias.unsqueeze(1)
    return _recur(rows.unflatten(1, inputs.shape[1:3]), w_hh, own.unsqueeze(1))


def _recur(gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    histories: Tensor = _Recurrence.apply(gates, weight, bias)  # type: ignore[no-untyped-call]
    return histories


class _Recurrence(Function):
    """h[t] = n + z (h[t-1] - n), of gates that know their inputs already. Stacked or not, steps are at -3, rows at -2.

    n = tanh is written 2 sigmoid(2 x) - 1, which is six times as fast here and differs by 1e-7.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``gates`` (..., T, R, 3H): reset, update, candidate; they are overwritten. Of ``bias`` only the candidate's."""
        hidden = weight.shape[-1]
        w_both, w_candidate = weight.mT.split([2 * hidden, hidden], -1)
        both, candidate = gates.split([2 * hidden, hidden], -1)
        reset, update = both.split(hidden, -1)
        remembered, histories = torch.empty_like(update), torch.empty_like(update)
        product = torch.addmm if weight.dim() == 2 else torch.baddbmm
        two, minus_one = gates.new_tensor(2.0), gates.new_tensor(-1.0)
        memory = gates.new_zeros(update.select(-3, 0).shape) if update.shape[-3] else None
        change = torch.empty_like(memory) if memory is not None else None
        whole = (both, reset, update, candidate, remembered, histories)
        for step in zip(*(tensor.unbind(-3) for tensor in whole), strict=True):
            b, r, z, n, m, h = step
            product(b, memory, w_both, out=b)
            product(bias, memory, w_candidate, out=m)
            b.sigmoid_()
            n.addcmul_(r, m).mul_(two).sigmoid_()
            torch.add(minus_one, n, alpha=2, out=n)
            torch.sub(memory, n, out=change)
            torch.addcmul(n, z, change, out=h)
            memory = h
        ctx.save_for_backward(gates, remembered, histories, weight)
        return histories

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, remembered, histories, weight = ctx.saved_tensors
