"""Risk: lower precision of matrix products rounds the values that are learned of."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from algos.factored import FactoredConfig
from marl.attention import Attention
from marl.config import Learning
from marl.dice import Noise
from marl.duplex import Duplex
from marl.learner import Learner
from marl.mixers import Monotonic, Unrestricted
from marl.nets import AgentNet, Layers
from marl.precision import full_precision
from marl.replay import Replay
from marl.types import EnvSpec, Episodes
from tests.test_family_options import chosen
from tests.yard import SPEC, built, episodes

LOW = torch.bfloat16


def low() -> torch.autocast:
    return torch.autocast("cpu", LOW)


@pytest.mark.parametrize("returns", ["peng", "n_step", "watkins", "harutyunyan"])
def test_targets_are_exact(returns):
    batch = episodes([6, 3])
    following, taken = 60 * torch.randn(2, *batch.reward.shape, 1)
    greedy = torch.rand(batch.reward.shape) < 0.5
    config = FactoredConfig(returns=returns)
    full = config.td_target(batch, following, taken, greedy)
    with low():
        assert torch.equal(config.td_target(batch, following, taken, greedy), full)
        assert config.td_target(batch, following.to(LOW), taken.to(LOW), greedy).dtype == torch.float32


@pytest.mark.parametrize(
    "mixer",
    [Monotonic(SPEC, 8, 8), Duplex(SPEC, 8, 2, 8), Attention(SPEC, 2, 4, 8, 8, 8)],
    ids=lambda m: type(m).__name__,
)
@torch.no_grad()
def test_joint_values_are_exact(mixer):
    chosen_values, best, state = torch.randn(2, 9, 3), torch.randn(2, 9, 3) + 3, torch.randn(2, 9, 6)
    inputs = (chosen_values, best, state, torch.zeros(2, 9, 3, dtype=torch.long))
    full = mixer(*inputs)
    with low():
        assert torch.equal(mixer(*inputs), full)


@torch.no_grad()
def test_unrestricted_values_and_heads_are_exact():
    chosen_values, state, features = torch.randn(2, 9, 3), torch.randn(2, 9, 6), torch.randn(2, 9, 3, 16)
    mixer, agent = Unrestricted(SPEC, 8), AgentNet(SPEC, Layers(16))
    full = mixer(chosen_values, state), agent.values(features)
    with low():
        assert torch.equal(mixer(chosen_values, state), full[0])
        assert torch.equal(agent.values(features), full[1])
        assert agent.values(features.to(LOW)).dtype == torch.float32


def rounded() -> tuple[str, bool, str]:
    """How a GPU would compute products and recurrences of float32."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.rnn.fp32_precision,
    )


@pytest.mark.parametrize(("precision", "used"), [("tf32", True), ("bf16", False), ("fp32", False)])
def test_products_are_rounded_to_tf32_where_it_is_asked_for_and_no_small_difference_is(precision, used):
    parts = built(chosen("vdn").algo)
    Learner(parts, Replay(SPEC, SPEC.fields(), 2, torch.device("cpu")), Learning(2, 1.0, 2), 0, precision=precision)
    assert rounded()[:2] == (("high", True) if used else ("highest", False))
    assert (rounded()[2] == "tf32") == used
    before = rounded()
    with low(), full_precision("cpu"):
        assert rounded()[:2] == ("highest", False) and rounded()[2] != "tf32"
        assert not torch.is_autocast_enabled("cpu")
    assert rounded() == before


FAMILY = ["iql", "pqn_vdn", "qatten", "qmix", "qplex", "qtran", "s2q", "vdn", "wqmix"]


@pytest.mark.parametrize("name", FAMILY)
def test_no_value_is_rounded(name):
    """Rewards of a hundred: what is told of values in lower precision is off by less than bfloat16's grid there."""
    spec = EnvSpec("yard", SPEC.n_agents, SPEC.n_actions, SPEC.obs_dim, SPEC.state_dim, SPEC.horizon)
    config = chosen(name).algo
    q = built(config, spec).q
    batch: Episodes = episodes([9, 5], spec)
    batch = batch.with_reward(batch.mask * 100.3)
    full = q.loss(batch, Noise(0, 0)).stats
    with low():
        lower = q.loss(batch, Noise(0, 0)).stats
    assert lower["q/target"].dtype == torch.float32
    assert float(lower["q/target"]) == pytest.approx(float(full["q/target"]), abs=0.05)
    assert float(lower["q/taken"]) == pytest.approx(float(full["q/taken"]), abs=0.05)


@pytest.mark.parametrize("low", ["algo.bonus_dtype=bfloat16", "precision=bf16"])
def test_a_cpu_without_products_of_bfloat16_is_told(low):
    setting = low.split("=")[0]
    assert f"{low}: this CPU has no products of that type; {setting}=f" in told_at_the_start(low)


def test_nothing_is_told_of_what_was_not_asked():
    assert "no products of that type" not in told_at_the_start()


def told_at_the_start(*settings: str) -> str:
    code = STARTS.format(arguments=["algo=fox", "env=meet", *settings])
    slow = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    return subprocess.run([sys.executable, "-c", code], env=slow, capture_output=True, text=True, check=True).stderr


STARTS = """
import algos, envs
from marl import build
from marl.command import cli
settings = cli.parse({arguments}, algos.ALGORITHMS, envs.ENVIRONMENTS)
build.learner(settings, build.spec(settings), build.device(settings))
"""
