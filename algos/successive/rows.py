"""Networks without memory need not see the padding of a batch."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Rows:
    """The entries of a padded batch that ``mask`` (B, T) marks; on a GPU all, since to count them is to wait."""

    def __init__(self, mask: Tensor) -> None:
        self._shape = tuple(mask.shape)
        marked = None if mask.is_cuda else mask.flatten().nonzero().squeeze(1)
        self._index = None if marked is None or len(marked) == mask.numel() else marked

    def apply(self, network: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``network(*inputs)`` (..., B, T, U) of ``inputs`` (..., B, T, I), with 0 where nothing is marked."""
        if self._index is None:
            return network(*inputs)
        marked = network(*(each.flatten(-3, -2).index_select(-2, self._index) for each in inputs))
        whole = marked.new_zeros(*marked.shape[:-2], self._shape[0] * self._shape[1], marked.shape[-1])
        return whole.index_copy(-2, self._index, marked).unflatten(-2, self._shape)
