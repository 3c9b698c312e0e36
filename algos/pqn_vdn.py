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
    double_q: bool = False  # the live network chooses the action that the delayed one values
    target_every_episodes: int = count(0, least=0)  # 0: every update values anew; as many as a round has: once a round
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("radam", lr=2.5e-4, clip=1.0, lr_decay=True))


def check(config: Config) -> None:
    """Refuse copies that follow softly, and a choice that is not of the network that values it.

    Raises:
        Mistake: either is asked for.
    """
    if config.double_q:
        raise Mistake("algo.double_q=true: pqn_vdn values what it chooses by the same network; allowed is false")
    if config.target_tau:
        told = "allowed is 0; algo.target_every_episodes keeps the values of a round"
        raise Mistake(f"algo.target_tau={config.target_tau}: pqn_vdn has no copies that follow softly; {told}")


def build(spec: EnvSpec, config: Config) -> Parts:
    """VDN on its own feet: the network itself values the greedy actions of the following views.

    At every update anew, as the released recurrent code does, or once for all updates of a round, as the released
    feed-forward code does.
    """
    lagging = config.target_every_episodes > 0
    return Parts(FactoredQ(agent_net(spec, config), Sum(), config, lagging=lagging), config.scaling())
