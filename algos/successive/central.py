"""The unrestricted value Q* of joint actions: what sub-values are compared by (Rashid et al. 2020, "Weighted QMIX")."""

from __future__ import annotations

from torch import Tensor, nn

from algos.successive.rows import Rows
from marl.mixers import Unrestricted
from marl.nets import AgentNet, Layers
from marl.types import EnvSpec


class Central(nn.Module):
    """Q*(s, tau, u) = g(c_1(tau_1, u_1) .. c_N(tau_N, u_N), s), g unconstrained.

    Args:
        embed: hidden units of g.
        outputs: V, values that each c_i gives for an action.
    """

    def __init__(self, spec: EnvSpec, layers: Layers, embed: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.agent = AgentNet(spec, layers, outputs)
        self.mixer = Unrestricted(spec, embed, outputs)

    def utilities(self, obs: Tensor, last_action: Tensor) -> Tensor:
        """c (B, T, N, A), or (B, T, N, A, V), of whole episodes (B, T, N, O), (B, T, N)."""
        utilities: Tensor = self.agent(obs, last_action)[0]
        return utilities

    def forward(self, utilities: Tensor, state: Tensor, actions: Tensor, rows: Rows | None = None) -> Tensor:
        """Q* (...) of ``actions`` (..., N) whose ``utilities`` and ``state`` may lack leading dimensions.

        With ``rows``, of whole batches (..., B, T, N): 0 where they mark nothing.
        """
        index = actions.unsqueeze(-1)
        if self.outputs == 1:
            chosen = utilities.expand(*actions.shape, -1).gather(-1, index).squeeze(-1)
        else:
            wide = index.unsqueeze(-1).expand(*index.shape, self.outputs)
            chosen = utilities.expand(*actions.shape, -1, -1).gather(-2, wide).flatten(-3)
        joint = self._mix(chosen, state) if rows is None else rows.apply(self._mix, chosen, state)
        return joint.squeeze(-1)

    def _mix(self, chosen: Tensor, state: Tensor) -> Tensor:
        """(..., N V), (..., S) -> (..., 1)."""
        joint: Tensor = self.mixer(chosen if self.outputs == 1 else chosen.unflatten(-1, (-1, self.outputs)), state)
        return joint
