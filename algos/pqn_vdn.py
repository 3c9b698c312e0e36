"""PQN-VDN: fresh episodes, layer norm and Q(lambda) instead of replay and delayed copies (Gallici et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field

from algos.factored import FactoredConfig, FactoredQ, Optimizer, agent_net, decay_of_returns
from marl.fields import Mistake, count, number
from marl.mixers import Sum
from marl.parts import Parts
from marl.types import EnvSpec


@dataclass
class Config(FactoredConfig):
    """What takes the place of replay is said to the learner: learner.every_episodes, replay.capacity."""

    name: str = "pqn_vdn"
    dense_layers: int = count(2)  # of the agent, before its GRU or the layer in its place
    layer_norm: bool = True  # normalise the agent's hidden layers: what keeps learning stable here
    td_lambda: float = decay_of_returns(0.85)  # peng: PyMARL's TD(lambda); 0: one-step targets
    td_weight: float = number(1.0, above=0)  # factor before the squared error
    target_every_episodes: int = count(0, least=0)  # 0: there are no delayed copies
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("radam", lr=2.5e-4, clip=1.0, lr_decay=True))


def check(config: Config) -> None:
    """Refuse delayed copies, and the choice between them and the live network.

    Raises:
        Mistake: either is asked for.
    """
    if not config.double_q:
        raise Mistake("algo.double_q=false: pqn_vdn has one network, which chooses and values; allowed is true")
    for key, value in (("target_every_episodes", config.target_every_episodes), ("target_tau", config.target_tau)):
        if value:
            raise Mistake(f"algo.{key}={value}: pqn_vdn keeps no delayed copies; allowed is 0")


def build(spec: EnvSpec, config: Config) -> Parts:
    """VDN on its own feet: the live network values the greedy actions of the following views."""
    return Parts(FactoredQ(agent_net(spec, config), Sum(), config, lagging=False), config.scaling())
