"""Risk: the GRU that is ours differs from the one it stands for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from marl import recurrent
from marl.nets import AgentNet, Layers
from marl.recurrent import unroll
from marl.types import EnvSpec

SPEC = EnvSpec("hand", n_agents=3, n_actions=4, obs_dim=5, state_dim=2, horizon=9)
NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def gru(size: int, hidden: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.GRU:
    torch.manual_seed(seed)
    return nn.GRU(size, hidden).to(dtype)


def weights(*layers: nn.GRU) -> list[Tensor]:
    """Of one GRU as they are, of several stacked."""
    if len(layers) == 1:
        return [layers[0].get_parameter(name) for name in NAMES]
    return [torch.stack([layer.get_parameter(name).detach() for layer in layers]).requires_grad_() for name in NAMES]


def gradients(histories: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum whose every entry weighs differently."""
    weight = torch.linspace(-1, 1, histories.numel(), dtype=histories.dtype).view_as(histories)
    return torch.autograd.grad((histories * weight).sum(), wanted)


@pytest.mark.parametrize(
    ("steps", "rows", "size", "hidden"), [(1, 1, 1, 1), (2, 1, 3, 4), (9, 6, 5, 8), (40, 16, 7, 32)]
)
def test_histories_and_gradients_are_those_of_torch(steps, rows, size, hidden):
    layer, inputs = gru(size, hidden, dtype=torch.float64), torch.randn(steps, rows, size, dtype=torch.float64)
    inputs.requires_grad_()
    ours, theirs = unroll(inputs, *weights(layer)), layer(inputs)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    wanted = [inputs, *weights(layer)]
    for mine, other in zip(gradients(ours, wanted), gradients(theirs, wanted), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


def test_single_precision_agrees_to_a_millionth():
    layer, inputs = gru(64, 64), torch.randn(26, 96, 64)
    torch.testing.assert_close(unroll(inputs, *weights(layer)), layer(inputs)[0], rtol=0, atol=1e-6)


def test_gradients_agree_with_finite_differences():
    layer, inputs = gru(2, 3, dtype=torch.float64), torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unroll, (inputs, *weights(layer)))
    pair = weights(layer, gru(2, 3, seed=1, dtype=torch.float64))
    both = torch.randn(2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unroll, (both, *pair))


def test_saturated_gates_stay_finite():
    layer, inputs = gru(2, 3), torch.full((3, 2, 2), 1e4, requires_grad=True)
    histories = unroll(inputs, *weights(layer))
    torch.testing.assert_close(histories, layer(inputs)[0], rtol=0, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients(histories, [inputs, *weights(layer)]))


@pytest.mark.parametrize("stacked", [2, 3])
def test_stacked_networks_are_networks_of_their_own(stacked):
    layers = [gru(5, 8, seed) for seed in range(stacked)]
    inputs, together = torch.randn(stacked, 7, 4, 5, requires_grad=True), weights(*layers)
    histories = unroll(inputs, *together)
    whole = gradients(histories, [inputs, *together])
    alone = torch.stack([layer(one)[0] for layer, one in zip(layers, inputs, strict=True)])
    torch.testing.assert_close(histories, alone, rtol=0, atol=1e-6)
    each = gradients(alone, [inputs, *(layer.get_parameter(name) for name in NAMES for layer in layers)])
    torch.testing.assert_close(whole[0], each[0], rtol=1e-4, atol=1e-6)
    for index, mine in enumerate(whole[1:]):
        theirs = torch.stack(each[1 + index * stacked : 1 + (index + 1) * stacked])
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cached", [1, 4 * 8 * 4 * 3, 4 * 8 * 4 * 5])
def test_gradients_do_not_depend_on_the_size_of_the_cache(cached, monkeypatch):
    """Blocks of one step, of three, of five with a rest; one network, and two of them."""
    for own in (weights(gru(5, 8)), weights(gru(5, 8), gru(5, 8, 1))):
        inputs = torch.randn(*own[0].shape[:-2], 7, 4, 5, requires_grad=True)
        monkeypatch.undo()
        whole = gradients(unroll(inputs, *own), [inputs, *own])
        monkeypatch.setattr(recurrent, "CACHED", cached)
        for one, other in zip(whole, gradients(unroll(inputs, *own), [inputs, *own]), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 5), (6, 0, 5), (0, 0, 5)])
def test_nothing_in_nothing_out(shape):
    inputs, own = torch.zeros(shape, requires_grad=True), weights(gru(5, 8))
    histories = unroll(inputs, *own)
    assert histories.shape == (*shape[:2], 8)
    assert all(not gradient.any() for gradient in torch.autograd.grad(histories.sum(), [inputs, *own]))
    pair = weights(gru(5, 8), gru(5, 8, 1))
    assert unroll(torch.zeros(2, *shape), *pair).shape == (2, *shape[:2], 8)


def test_inputs_and_saved_results_are_left_as_they_were():
    """Two backward passes of one graph agree, and what was given is what it was."""
    inputs, own = torch.randn(6, 4, 5, requires_grad=True), weights(gru(5, 8))
    before = [tensor.detach().clone() for tensor in (inputs, *own)]
    total = unroll(inputs, *own).square().sum()
    first = torch.autograd.grad(total, [inputs, *own], retain_graph=True)
    second = torch.autograd.grad(total, [inputs, *own])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for tensor, kept in zip((inputs, *own), before, strict=True):
        assert torch.equal(tensor, kept)


def test_a_row_does_not_know_its_neighbours_nor_the_future():
    own, inputs = weights(gru(5, 8)), torch.randn(6, 4, 5)
    other = inputs.clone()
    other[:, 1:] += 1
    other[3:, 0] += 1
    one, two = unroll(inputs, *own), unroll(other, *own)
    torch.testing.assert_close(one[:3, 0], two[:3, 0], rtol=0, atol=1e-6)
    assert not torch.allclose(one[3:, 0], two[3:, 0]) and not torch.allclose(one[:3, 1:], two[:3, 1:])


def test_autocast_keeps_the_recurrence_in_single_precision():
    layer, inputs = gru(16, 16), torch.randn(20, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        histories = unroll(inputs, *weights(layer))
    assert histories.dtype == torch.float32
    torch.testing.assert_close(histories, layer(inputs)[0], rtol=0, atol=0.03)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("dense", [1, 3])
def test_whole_episodes_and_single_steps_agree(shared, layer_norm, dense):
    torch.manual_seed(0)
    agent = AgentNet(SPEC, Layers(16, shared=shared, layer_norm=layer_norm, dense=dense))
    obs, last = torch.randn(4, 9, 3, 5), torch.randint(-1, 4, (4, 9, 3))
    values, features = agent(obs, last)
    assert values.shape == (4, 9, 3, 4) and features.shape == (4, 9, 3, 16)
    memory = agent.start(4)
    for t in range(9):
        now, memory = agent.step(obs[:, t], last[:, t], memory)
        torch.testing.assert_close(now, values[:, t], rtol=0, atol=1e-5)


@pytest.mark.parametrize("recurrent", [True, False])
def test_dense_layers_stand_before_the_memory(recurrent):
    """Linear, norm, ReLU, each: by hand."""
    torch.manual_seed(0)
    agent = AgentNet(SPEC, Layers(16, recurrent, layer_norm=True, dense=3))
    trunk, inputs = agent.body.trunk, torch.randn(2, 3, agent.body.input.size)
    linears = [trunk.dense[0], trunk.dense[3], trunk.dense[6]]
    assert len(trunk.dense) == 9 and len({id(layer) for layer in linears}) == 3
    features = inputs
    for layer in linears:
        product = features @ layer.weight.T + layer.bias
        features = torch.nn.functional.layer_norm(product, (16,)).clamp(min=0)
    memory = torch.randn(2, 3, 16)
    if recurrent:
        after = torch.gru_cell(features.flatten(0, 1), memory.flatten(0, 1), *trunk.rnn.all_weights[0]).view(2, 3, 16)
        expected = torch.nn.functional.layer_norm(after, (16,))
    else:
        expected = torch.nn.functional.layer_norm(trunk.last(features), (16,)).clamp(min=0)
    torch.testing.assert_close(trunk.step(inputs, memory)[0], expected)
