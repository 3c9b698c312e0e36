"""One football engine: the C++ game of gfootball 2.10.2, driven as its ``FootballEnvCore`` drives it.

Importing this module needs the compiled game. The Python side of gfootball is not used.
"""

from __future__ import annotations

from collections.abc import Sequence

import gfootball_engine as library
import numpy as np

from envs.football.observation import Frame, Scene
from envs.football.scenarios import ACTIONS, Match, Spot

_CODES = [int(library.e_BackendAction.names[name]) for name in ACTIONS]
_IDLE, _LEFT, _RIGHT, _PASS = (_CODES[ACTIONS.index(name)] for name in ("idle", "left", "right", "short_pass"))
_NORMAL = int(library.e_GameMode.e_GameMode_Normal)
_NOBODY = -1
_PATIENCE = 20
"""Steps of a stopped game after which gfootball makes the agents restart it."""
_OPENINGS = 16

# The library has no way to free an engine (50 MB each): a closed one waits here for the next copy in this process.
_spare: list[Engine] = []


def acquire() -> Engine:
    """An engine that nobody uses in this process, or a new one (0.35 s)."""
    return _spare.pop() if _spare else Engine()


def kick_off(match: Match, seed: int) -> library.ScenarioConfig:
    """The library's description of an episode. It is good for one reset, which changes it."""
    scenario = match.scenario
    settings = library.ScenarioConfig.make()
    settings.game_duration = scenario.duration
    settings.deterministic = False
    settings.offsides = scenario.offsides
    settings.end_episode_on_score = scenario.score_ends
    settings.end_episode_on_out_of_play = scenario.out_of_play_ends
    settings.end_episode_on_possession_change = match.possession_ends
    if scenario.difficulty is not None:
        settings.left_team_difficulty, settings.right_team_difficulty = scenario.difficulty
    settings.ball_position[0], settings.ball_position[1] = scenario.ball
    left, right = match.sides(seed)
    for index, spot in enumerate(left):
        free = index >= match.first if match.fixed else scenario.free_keepers or spot[2] != "GK"
        settings.left_team.append(_player(spot, free))
    for spot in right:
        settings.right_team.append(_player(spot, scenario.free_keepers or spot[2] != "GK"))
    settings.left_agents, settings.right_agents = scenario.n_agents, 0
    settings.game_engine_random_seed = seed
    settings.reverse_team_processing = bool(seed % 2)
    return settings


def _player(spot: Spot, controllable: bool) -> library.FormationEntry:
    x, y, role = spot
    return library.FormationEntry(x, y, library.e_PlayerRole.names[f"e_PlayerRole_{role}"], False, controllable)


class Engine:
    """One game. Not to be shared by threads."""

    def __init__(self) -> None:
        self._game = library.GameEnv()
        self._game.start_game()
        self.match: Match | None = None
        self.episode = 0
        self._openings: dict[int, bytes] = {}
        self._side: object = None
        self._info: library.SharedInfo  # of the last step; there is none before the first episode
        self._mode, self._owner, self._lead, self._stopped = -1, _NOBODY, 0, 0

    def begin(self, match: Match, seed: int) -> Frame:
        """Start the episode that ``seed`` (0 to 2**32 - 1) fixes, whatever was played before.

        The library's reset costs seven steps, and its seed decides little: how players hold their bodies before the
        referee, at the whistle, seeds everything again. So an episode loads one of 16 openings, kept from resets with
        the seeds 0 to 15, and seeds the whistle. With these 16 seeds it is gfootball's episode bit for bit.

        A state lacks what the library makes at a reset alone: which team is moved first, and where teams line up for a
        kick-off. So openings that differ in these are not loaded over one another.
        """
        opening = seed % _OPENINGS
        side = (opening % 2, match.sides(opening)[0])
        if match != self.match:
            self._openings.clear()
            self.match, self._side = match, None
        if opening in self._openings and side == self._side:
            self._game.set_state(self._openings[opening])
        else:
            self._game.reset(kick_off(match, opening), False)
            self._openings[opening], self._side = self._game.get_state(""), side
        self._game.config.game_engine_random_seed = seed
        self.episode += 1
        self._mode, self._owner, self._lead, self._stopped = -1, _NOBODY, 0, 0
        self._info = self._game.get_info()
        if not self._info.is_in_play:
            self._advance()
        return self._frame(gain=0, over=False)

    def step(self, actions: Sequence[int]) -> Frame:
        """Play on for a tenth of a second; ``actions`` (N,) index `ACTIONS`."""
        perform = self._game.perform_action
        for seat, code in enumerate(self._orders(actions)):
            perform(code, True, seat)
        self._advance()
        return self._judge()

    def close(self) -> None:
        """Leave the engine to the next copy of this process."""
        _spare.append(self)

    def snapshot(self) -> bytes:
        """The moment as a state that another engine with the same match can load."""
        state: bytes = self._game.get_state("")
        return state

    def scene(self) -> Scene:
        """Everybody's place."""
        info = self._info
        teams = ([(p.position[0], p.position[1]) for p in team] for team in (info.left_team, info.right_team))
        left, right = (np.array(team, np.float32) for team in teams)
        ball = np.array([info.ball_position[axis] for axis in range(3)], np.float32)
        return Scene(left, right, ball, self._controlled())

    def _advance(self) -> None:
        while True:
            self._game.step()
            # Answers for the engine moved last in this thread, hence at once.
            self._info = self._game.get_info()
            if self._info.is_in_play:
                return

    def _orders(self, actions: Sequence[int]) -> list[int]:
        """Backend codes; a game that stands still for too long is restarted as ``FootballEnvCore`` does it."""
        if self._stopped < _PATIENCE:
            return [_CODES[action] for action in actions]
        if self._stopped == _PATIENCE:
            return [_PASS] * len(actions)
        orders = [_IDLE] * len(actions)
        if self._info.ball_owned_team == 0:
            controlled = self._controlled()
            for seat, player in enumerate(controlled):
                if player == self._info.ball_owned_player:
                    orders[seat] = _RIGHT if self._stopped < 30 else _LEFT
        return orders

    def _judge(self) -> Frame:
        """The rules of ``FootballEnvCore.step``, but for the game's duration: time limits are the caller's."""
        assert self.match is not None
        info, scenario = self._info, self.match.scenario
        scored, conceded = info.left_goals, info.right_goals
        over = scenario.score_ends and (scored > 0 or conceded > 0)
        mode = int(info.game_mode)
        if scenario.out_of_play_ends and mode != _NORMAL and self._mode == _NORMAL:
            over = True
        self._mode = mode
        self._stopped = self._stopped + 1 if mode != _NORMAL else 0
        owner = info.ball_owned_team
        if owner != _NOBODY:
            if self.match.possession_ends and self._owner not in (_NOBODY, owner):
                over = True
            self._owner = owner
        gain = scored - conceded - self._lead
        self._lead += gain
        return self._frame(gain, over)

    def _controlled(self) -> tuple[int, ...]:
        assert self.match is not None
        seats = self._info.left_controllers
        return tuple([seats[seat].controlled_player for seat in range(self.match.scenario.n_agents)])

    def _frame(self, gain: int, over: bool) -> Frame:
        assert self.match is not None
        info, first = self._info, self.match.first
        left, right = info.left_team, info.right_team
        ours = [left[first + agent] for agent in range(self.match.scenario.n_agents)]
        theirs = [right[opponent] for opponent in range(self.match.scenario.opponents)]
        places = (*[p.position for p in ours], *[p.direction for p in ours])
        places = (*places, *[p.position for p in theirs], *[p.direction for p in theirs])
        features = [value for place in places for value in (place[0], place[1])]
        ball, ball_direction = info.ball_position, info.ball_direction
        features += (ball[0], ball[1], ball[2], ball_direction[0], ball_direction[1], ball_direction[2])
        return Frame(features, gain, over, self._controlled())
