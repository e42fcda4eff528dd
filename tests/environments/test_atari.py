"""The Atari protocol against the emulator itself."""

import ale_py
import cv2
import numpy as np
import pytest

from offline_mbrl import environments
from offline_mbrl.data.catalog import atari as facts
from offline_mbrl.environments import atari
from offline_mbrl.types import UsageError


def emulator(name):
    """The emulator beneath one of our simulators."""
    environment = environments.make(name, seed=0)
    raw = environment._environment.unwrapped
    return environment, raw.ale


def shrunk(screen):
    return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)


def by_hand(game, actions, *, skip):
    """Observations of our protocol without sticky actions, from the emulator's grey screens."""
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(ale_py.roms.get_rom_path(game))
    ale.reset_game()
    minimal = ale.getMinimalActionSet()
    found, rewards, flickers = [shrunk(ale.getScreenGrayscale())], [], False
    for action in actions:
        screens, total = [], 0.0
        for _ in range(skip):
            total += ale.act(minimal[action])
            screens.append(ale.getScreenGrayscale())
        found.append(shrunk(np.max(screens[-2:], axis=0)))
        rewards.append(total)
        flickers |= bool((found[-1] != shrunk(screens[-1])).any())
    assert flickers  # so that the maximum is tested
    return np.stack(found), np.array(rewards)


@pytest.mark.parametrize(
    ("game", "rom", "skip"), [("Pong", "pong", 4), ("SpaceInvaders", "space_invaders", 3)]
)
def test_frames_are_the_greatest_of_the_last_two_grey_screens_averaged_over_areas(game, rom, skip):
    environment = environments.make(f"atari/{game}?sticky=0&skip={skip}", seed=0)
    rng = np.random.default_rng(0)
    actions = rng.integers(environment.action_spec().num_values, size=450).tolist()
    frames, rewards = by_hand(rom, actions, skip=skip)
    timesteps = [environment.reset(), *(environment.step(action) for action in actions)]
    np.testing.assert_array_equal([timestep.observation[..., -1] for timestep in timesteps], frames)
    np.testing.assert_array_equal([timestep.reward for timestep in timesteps[1:]], rewards)
    assert np.abs(rewards).max() >= 1  # in Space Invaders more: nothing is clipped
    np.testing.assert_array_equal(timesteps[2].observation, frames[[0, 0, 1, 2]].transpose(1, 2, 0))


def test_options_reach_the_emulator_and_defaults_are_the_protocol():
    for options, sticky, frames in (
        ("", 0.25, 4),
        ("?sticky=0.1", 0.1, 4),
        ("?skip=3&sticky=0", 0, 3),
    ):
        environment, ale = emulator(f"atari/Breakout{options}")
        environment.reset()
        environment.step(0)
        assert ale.getEpisodeFrameNumber() == frames
        assert ale.getFloat("repeat_action_probability") == pytest.approx(sticky)
        assert ale.getInt("max_num_frames_per_episode") == 0  # the limit is ours


def test_sticky_actions_differ_by_seed_and_none_do_not():
    def play(name, seed):
        environment = environments.make(name, seed=seed)
        frames = [environment.reset().observation]
        frames += [environment.step(t % 6).observation for t in range(80)]
        return np.stack(frames)

    np.testing.assert_array_equal(play("atari/Pong", 1), play("atari/Pong", 1))
    assert (play("atari/Pong", 1) != play("atari/Pong", 2)).any()
    np.testing.assert_array_equal(play("atari/Pong?sticky=0", 1), play("atari/Pong?sticky=0", 2))


def test_the_longest_episode_is_half_an_hour_or_what_is_asked():
    assert environments.spec("atari/Pong").horizon == facts.HORIZON == 27_000
    assert environments.spec("atari/Pong?skip=2").horizon == 54_000
    assert environments.spec("atari/Pong?max_steps=20000").horizon == 20_000


def test_a_lost_life_does_not_end_the_game():
    environment, ale = emulator("atari/Breakout")
    timestep = environment.reset()
    while ale.lives() > 3:
        timestep = environment.step(1)
        assert not timestep.last()
    while not timestep.last():
        timestep = environment.step(1)
    assert ale.lives() == 0
    assert timestep.discount == 0


def test_the_known_sizes_of_action_sets_are_the_emulators():
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    assert set(facts.NUM_ACTIONS) == set(atari.names())
    for game in ("Pong", "Breakout", "Seaquest", "Freeway", "Tutankham", "Assault"):
        assert environments.spec(f"atari/{game}").action.num_actions == facts.NUM_ACTIONS[game]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sticky=2", "option sticky must be a probability from 0 to 1"),
        ("skip=0", "option skip must be a positive whole number"),
        ("frame_skip=4", "atari has: noise, max_steps, sticky, skip"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        environments.make(f"atari/Pong?{options}", seed=0)
