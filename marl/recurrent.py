"""A GRU over whole episodes: on a CPU, one product for all inputs and one for all weight gradients.

`torch.nn.GRU` runs some thirty small kernels a step when it trains on a CPU. Here a step is eight kernels forward and
three backward, in place; the rest is done for all steps at once. On a GPU cuDNN does the same, and is used.

Shapes beside those of `marl.types`: R rows, which are sequences side by side · G networks of one size, stacked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input

CACHED = 3 * 2**18
"""Numbers that are worked on again before they leave the cache."""


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it would write out every step, and take minutes for long episodes
def unroll(inputs: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor) -> Tensor:
    """What one GRU, or G of them side by side, remember at every step from a zero memory.

    ``inputs`` (T, R, I) and weights as `torch.nn.GRU` has them, (3H, I), (3H, H), (3H,), (3H,) -> (T, R, H); or all of
    them with G in front -> (G, T, R, H). Equal to `torch.nn.GRU` up to rounding. Under autocast the product with the
    inputs is in the lower type and the recurrence in the weights' own.
    """
    hidden = w_hh.shape[-1]
    both, own = b_hh.tensor_split([2 * hidden], -1)
    bias = b_ih + functional.pad(both, (0, hidden))
    if w_hh.dim() == 2:
        gates = functional.linear(inputs, w_ih, bias)
    else:
        rows = torch.baddbmm(bias.unsqueeze(1), inputs.flatten(1, 2), w_ih.mT)
        gates, own = rows.view(*inputs.shape[:3], 3 * hidden), own.unsqueeze(1)
    with torch.autocast(inputs.device.type, enabled=False):
        histories: Tensor = _Recurrence.apply(gates.to(w_hh.dtype), w_hh, own)  # type: ignore[no-untyped-call]
    return histories


def remembered(gru: nn.GRU, inputs: Tensor) -> Tensor:
    """What ``gru``, steps first, remembers at every step from a zero memory: (T, R, I) -> (T, R, H)."""
    return nn.GRU.forward(gru, inputs)[0] if inputs.is_cuda else unroll(inputs, *gru.all_weights[0])


class _Recurrence(Function):
    """h[t] = n + z (h[t-1] - n) of gates that know their inputs already. Stacked or not, steps are at -3, rows at -2.

    n = tanh(x) is computed as 2 sigmoid(2 x) - 1: that is faster here and differs by 1e-7.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``gates`` (..., T, R, 3H): reset, update, candidate; they are overwritten. ``bias`` is the candidate's."""
        hidden = weight.shape[-1]
        w_both, w_candidate = weight.mT.tensor_split([2 * hidden], -1)
        both, candidate = gates.tensor_split([2 * hidden], -1)
        reset, update = both.chunk(2, -1)
        recalled, histories = torch.empty_like(update), torch.empty_like(update)
        product = torch.addmm if weight.dim() == 2 else torch.baddbmm
        two, minus_one = gates.new_tensor(2.0), gates.new_tensor(-1.0)
        memory = gates.new_zeros(*update.shape[:-3], *update.shape[-2:])
        change = torch.empty_like(memory)
        steps = zip(*(whole.unbind(-3) for whole in (both, reset, update, candidate, recalled, histories)), strict=True)
        for step, (rz, r, z, n, m, h) in enumerate(steps):
            if step:
                product(rz, memory, w_both, out=rz)
                product(bias, memory, w_candidate, out=m)
            else:
                m.copy_(bias)
            rz.sigmoid_()
            n.addcmul_(r, m).mul_(two).sigmoid_()
            torch.add(minus_one, n, alpha=2, out=n)
            torch.sub(memory, n, out=change)
            torch.addcmul(n, z, change, out=h)
            memory = h
        ctx.save_for_backward(gates, recalled, histories, weight)
        return histories

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step by step only what a memory owes to those after it; weights collect from all steps at once."""
        gates, recalled, histories, weight = ctx.saved_tensors
        hidden = weight.shape[-1]
        slopes = gates.new_empty(*histories.shape[:-1], 4, hidden)
        by_memory = slopes.flatten(-2)[..., : 3 * hidden]
        flow = grad.clone(memory_format=torch.contiguous_format)
        towards = torch.cat([weight[..., 2 * hidden :, :], weight[..., : 2 * hidden, :]], -2)
        product = Tensor.addmm_ if weight.dim() == 2 else Tensor.baddbmm_
        owed, keeps = flow.unbind(-3), gates[..., hidden : 2 * hidden].unbind(-3)
        owed_by_four, slopes_at = flow.unsqueeze(-2).unbind(-4), slopes.unbind(-4)
        by_memory_at = by_memory.unbind(-3)
        block = max(1, CACHED * len(owed) // max(1, slopes.numel()))
        for end in range(len(owed), 0, -block):
            start = max(0, end - block)
            _write_slopes(slopes, gates, recalled, histories, slice(start, end))
            for t in reversed(range(start, end)):
                slopes_at[t].mul_(owed_by_four[t])
                if t:
                    product(owed[t - 1].addcmul_(owed[t], keeps[t]), by_memory_at[t], towards)
        # In the other order this product takes a tenth longer.
        turned = (histories[..., :-1, :, :].flatten(-3, -2).mT @ by_memory[..., 1:, :, :].flatten(-3, -2)).mT
        d_weight = torch.cat([turned[..., hidden:, :], turned[..., :hidden, :]], -2)
        d_bias = by_memory[..., :hidden].flatten(-3, -2).sum(-2, keepdim=weight.dim() == 3)
        return slopes.flatten(-2)[..., hidden:], d_weight, d_bias


def _write_slopes(out: Tensor, gates: Tensor, recalled: Tensor, histories: Tensor, steps: slice) -> None:
    """Of each memory by its candidate's recalled part, reset, update and candidate: ``out`` (..., T, R, 4, H)."""
    hidden, before = histories.shape[-1], histories[..., max(0, steps.start - 1) : steps.stop - 1, :, :]
    out, gates, recalled = out[..., steps, :, :, :], gates[..., steps, :, :], recalled[..., steps, :, :]
    reset, update, candidate = gates.chunk(3, -1)
    by_memory, by_reset, by_update, by_input = out.unbind(-2)
    tanh_backward(1 - update, candidate, grad_input=by_input)
    torch.mul(by_input, reset, out=by_memory)
    torch.mul(by_input, recalled, out=by_reset)
    torch.neg(candidate, out=by_update)
    by_update[..., int(steps.start == 0) :, :, :].add_(before)
    by_both = out.flatten(-2)[..., hidden : 3 * hidden]
    sigmoid_backward(by_both, gates[..., : 2 * hidden], grad_input=by_both)
