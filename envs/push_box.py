"""Push-2-Box: two agents and two boxes on a grid; only a box that reaches the border pays (Park, Lee, Han 2025).

Of the paper's toy no more is known than that one agent alone moves a box slower than two together, and that agents who
switch between the boxes finish neither; the geometry, the sizes and what follows are ours (docs/fim.md).

An agent whose way is barred by a box pushes it, and so does one who pushes from behind a team-mate that pushes the same
way. In one step a box is displaced by the sum of the pushes on it, cell by cell, and stopped by the other box, an agent
or the border. A box pushed by two in a line moves two cells, by two at a right angle one cell along each. Those who
push follow their box as far as it went their way. Otherwise agents move one cell; a cell that a box, or an agent
that stays, holds cannot be entered, neither can one that both want, and two agents do not change places.

Actions 0 to 4 are stay, up, down, left, right. The episode ends with reward 1 when a box touches the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from envs import refusal
from marl.env import BatchedEnv, Moments
from marl.fields import check_values, count
from marl.types import Array, Column, EnvSpec

MOVES = np.asarray([[0, 0], [0, 1], [0, -1], [-1, 0], [1, 0]])
STAY = 0
PAIR = np.arange(2)
PUSHES = ("pushes", "joint_pushes", "other_box_pushes")
"""Steps of the episode in which anybody pushed; both the same box; anybody the box that was not the first pushed."""


@dataclass
class Config:
    name: str = "push_box"
    width: int = count(15, least=7)  # W, cells along each side, odd
    horizon: int = count(100)  # T, steps
    two_needed: bool = False  # a box moves only if both agents push it the same way


def refuse_bad(config: Config) -> None:
    check_values(config, "env.")
    if config.width % 2 == 0:
        raise refusal("env.width", config.width, "allowed are odd numbers from 7 on")


def starts(width: int) -> tuple[Array, Array]:
    """Agents and boxes, (2, 2) each as (x, y)."""
    middle, away = width // 2, width // 5
    agents = np.asarray([[middle, middle - 1], [middle, middle + 1]])
    return agents, np.asarray([[middle - away, middle], [middle + away, middle]])


def probe(config: Config) -> None:
    """Nothing to install; a bad setting raises ValueError."""
    refuse_bad(config)


def make(config: Config, size: int) -> BatchedEnv:
    return PushBox(config, size)


class PushBox(BatchedEnv):
    """Observation (10): own place, the team-mate's, the boxes', over W - 1; the agent's index one-hot.

    State (8): places of agents and boxes over W - 1.
    """

    def __init__(self, config: Config, size: int) -> None:
        refuse_bad(config)
        self._config, self._far = config, config.width - 1
        self.size = size
        counted = Column((), "float32", "episode")
        self.spec = EnvSpec(
            name=config.name,
            n_agents=2,
            n_actions=len(MOVES),
            obs_dim=10,
            state_dim=8,
            horizon=config.horizon,
            state_groups={"agents": (0, 1, 2, 3), "boxes": (4, 5, 6, 7)},
            by_agent=("agents",),
            teammate_blocks=(((2, 3),), ((2, 3),)),
            noop=STAY,
            reward_range=(0.0, 1.0),
            draws=True,
            columns={"won": Column((), "bool", "episode")} | dict.fromkeys(PUSHES, counted),
        )

    def reset(self, seeds: Sequence[int]) -> Moments:
        copies, spec = self.starting(seeds), self.spec
        agents, boxes = starts(self._config.width)
        self._agents, self._boxes = np.repeat(agents[None], copies, 0), np.repeat(boxes[None], copies, 0)
        self._time, self._first_box = np.zeros(copies, np.int64), np.full(copies, -1)
        self._moments = Moments.blank(spec, copies)
        self._moments.avail[:] = True
        self._moments.obs[:, PAIR, 8 + PAIR] = 1.0
        self._show(np.arange(copies))
        return self._moments

    def step(self, actions: Array, live: Array) -> Moments:
        rows, now = np.flatnonzero(live), self._moments
        agents, boxes = self._agents[rows], self._boxes[rows]
        move = MOVES[actions[rows]]
        pushed = self._pushed(agents, boxes, move)
        carried = self._shove(agents, boxes, move, pushed)
        self._agents[rows] = self._walk(agents, boxes, move, pushed, carried)
        self._boxes[rows] = boxes
        self._time[rows] += 1
        won = ((boxes == 0) | (boxes == self._far)).any((1, 2))
        now.reward[rows] = won
        now.terminal[rows] = won
        now.truncated[rows] = ~won & (self._time[rows] == self.spec.horizon)
        now.columns["won"][rows] = won
        self._count(rows, pushed)
        self._show(rows)
        return now

    def _pushed(self, agents: Array, boxes: Array, move: Array) -> Array:
        """(R, 2) the box that each agent pushes, or -1."""
        at_box = ((agents + move)[:, :, None] == boxes[:, None]).all(-1)
        own = np.where(at_box.any(-1), at_box.argmax(-1), -1)
        behind = (agents + move == agents[:, ::-1]).all(-1) & (move == move[:, ::-1]).all(-1)
        return np.where(behind, own[:, ::-1], own)

    def _count(self, rows: Array, pushed: Array) -> None:
        columns, pushing = self._moments.columns, pushed >= 0
        first = np.where(self._first_box[rows] < 0, pushed.max(1), self._first_box[rows])
        self._first_box[rows] = first
        columns["pushes"][rows] += pushing.any(1)
        columns["joint_pushes"][rows] += pushing[:, 0] & (pushed[:, 0] == pushed[:, 1])
        columns["other_box_pushes"][rows] += (pushing & (pushed != first[:, None])).any(1)

    def _shove(self, agents: Array, boxes: Array, move: Array, pushed: Array) -> Array:
        """Displace ``boxes`` (R, 2, 2) in place; (R, 2) cells that the box of each agent went the agent's way."""
        same_box = (pushed[:, 0] >= 0) & (pushed[:, 0] == pushed[:, 1])
        same_way = (move[:, 0] == move[:, 1]).all(-1)
        opposed = same_box & (move[:, 0] == -move[:, 1]).all(-1)
        effective = (pushed >= 0) & ~opposed[:, None]
        if self._config.two_needed:
            effective &= (same_box & same_way)[:, None]
        row, gone = np.arange(len(boxes)), np.zeros(pushed.shape, np.int64)
        for pusher in PAIR:
            box = np.maximum(pushed[:, pusher], 0)
            to = boxes[row, box] + move[:, pusher]
            barred = (to[:, None] == agents).all(-1).any(-1) | (to == boxes[row, 1 - box]).all(-1)
            barred |= ((to < 0) | (to > self._far)).any(-1)
            moved = effective[:, pusher] & ~barred
            boxes[row[moved], box[moved]] = to[moved]
            gone[:, pusher] = moved
        return np.where((same_box & same_way)[:, None], gone.sum(1, keepdims=True), gone)

    def _walk(self, agents: Array, boxes: Array, move: Array, pushed: Array, carried: Array) -> Array:
        """(R, 2, 2) where the agents are after boxes have moved."""
        to = np.clip(agents + move * np.where(pushed >= 0, carried, 1)[..., None], 0, self._far)
        to = np.where((to[:, :, None] == boxes[:, None]).all(-1).any(-1)[..., None], agents, to)
        meeting = (to[:, 0] == to[:, 1]).all(-1)
        crossing = (to == agents[:, ::-1]).all((1, 2))
        to = np.where((meeting | crossing)[:, None, None], agents, to)
        blocked = (to == to[:, ::-1]).all(-1)
        return np.where(blocked[..., None], agents, to)

    def _show(self, rows: Array) -> None:
        now, count = self._moments, len(rows)
        own = (self._agents[rows] / self._far).astype(np.float32)
        boxes = (self._boxes[rows] / self._far).reshape(count, 1, 4)
        now.obs[rows, :, :8] = np.concatenate([own, own[:, ::-1], np.repeat(boxes, 2, 1)], 2)
        now.state[rows] = np.concatenate([own.reshape(count, 4), boxes[:, 0]], 1)

    def render(self, copy: int = 0) -> Array:
        """Cells of 24 x 24 pixels, the border grey: boxes brown, the first agent blue, the second orange."""
        side, width = 24, self._config.width
        picture = np.full((width * side, width * side, 3), 255, np.uint8)
        inner = picture[side:-side, side:-side].copy()
        picture[:] = 225
        picture[side:-side, side:-side] = inner
        picture[::side] = picture[:, ::side] = 200

        def paint(place: Array, margin: int, colour: tuple[int, int, int]) -> None:
            left, top = place[0] * side + margin, (width - 1 - place[1]) * side + margin
            picture[top : top + side - 2 * margin, left : left + side - 2 * margin] = colour

        for box in self._boxes[copy]:
            paint(box, 2, (150, 100, 50))
        for agent, colour in zip(self._agents[copy], ((40, 80, 220), (240, 140, 30)), strict=True):
            paint(agent, 5, colour)
        return picture
