"""Facts of Atari data: actions of the games, parts of the official datasets, local behavior."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from offline_mbrl.types import UsageError

FRAME_STACK = 4  # frames that the policy sees; single frames are stored
HORIZON = 27_000  # agent steps: 30 minutes of play at 60 frames a second, 4 of them a step
BUILDERS = ("rlu_atari", "rlu_atari_checkpoints_ordered")
RUNS = 5  # runs of the online DQN per game
_FEWER_CHECKPOINTS = ("Carnival", "Gravitar", "StarGunner")  # 49 instead of 50

# Games by the size of their minimal sets of actions.
_BY_NUM_ACTIONS = {
    3: "Backgammon Freeway Skiing",
    4: "Atlantis Atlantis2 Blackjack Breakout Casino Kaboom",
    5: "Frogger Pacman Surround Tetris VideoCheckers",
    6: (
        "AirRaid BasicMath Bowling Carnival DemonAttack Galaxian KingKong NameThisGame Pong "
        "Pooyan Qbert SirLancelot SpaceInvaders UpNDown"
    ),
    7: "Assault",
    8: "Gopher Phoenix Tutankham",
    9: "Asterix BeamRider CrazyClimber Enduro Koolaid LostLuggage MsPacman VideoPinball",
    10: "Amidar MrDo Othello TicTacToe3D TimePilot VideoChess WizardOfWor",
    12: "Turmoil",
    14: "Asteroids KeystoneKapers KungFuMaster",
    16: "JourneyEscape",
    18: (
        "Adventure Alien BankHeist BattleZone Berzerk Boxing Centipede ChopperCommand Crossbow "
        "Darkchambers Defender DonkeyKong DoubleDunk Earthworld ElevatorAction Entombed Et "
        "FishingDerby FlagCapture Frostbite Gravitar Hangman HauntedHouse Hero HumanCannonball "
        "IceHockey Jamesbond Kangaroo Klax Krull LaserGates MarioBros MiniatureGolf "
        "MontezumaRevenge Pitfall Pitfall2 PrivateEye Riverraid RoadRunner Robotank Seaquest "
        "Solaris SpaceWar StarGunner Superman Tennis Trondead Venture VideoCube WordZapper "
        "YarsRevenge Zaxxon"
    ),
}
NUM_ACTIONS = {game: size for size, games in _BY_NUM_ACTIONS.items() for game in games.split()}

# --- the official datasets ---

_VARIANT = re.compile(r"-(?:(checkpoints)(\d+)(?:-(\d+))?|(percent)(\d+)|(unclipped))")


class Part(NamedTuple):
    """A part of an official dataset; defaults do not show in its name."""

    checkpoints: tuple[int, int] | None = None  # first and last, of the ordered dataset
    percent: int = 100  # share of the episodes of every split, from the first on
    clipped: bool = True  # rewards in [-1, 1]


def num_checkpoints(game: str) -> int:
    """The number of splits, of about a million agent steps each, of a run's ordered dataset."""
    return 49 if game in _FEWER_CHECKPOINTS else 50


def game_of(config: str) -> str:
    """`Pong` of `Pong_run_1`."""
    return config.rpartition("_run_")[0]


def parse(name: str) -> tuple[str, Part] | None:
    """Parses names such as `rlu_atari_checkpoints_ordered/Pong_run_1-percent10`.

    Returns:
      The official name and the part, or None where the name has another form. Whether there is such
      a dataset is not checked.

    Raises:
      UsageError: a number is out of range, or the dataset has no checkpoints.
    """
    builder, _, rest = name.partition("/")
    config, dash, variants = rest.partition("-")
    if builder not in BUILDERS or not re.fullmatch(f"(?:{_VARIANT.pattern})*", dash + variants):
        return None
    part = Part()
    for checkpoints, first, last, percent, share, _ in _VARIANT.findall(dash + variants):
        if checkpoints:
            part = part._replace(checkpoints=(int(first), int(last or first)))
        elif percent:
            part = part._replace(percent=int(share))
        else:
            part = part._replace(clipped=False)
    _check(name, builder, game_of(config), part)
    return f"{builder}/{config}", part


def full_name(name: str, part: Part) -> str:
    """The canonical name of a part of the dataset `name`."""
    suffix = "-checkpoints{}-{}".format(*part.checkpoints) if part.checkpoints else ""
    suffix += f"-percent{part.percent}" if part.percent < 100 else ""
    suffix += "" if part.clipped else "-unclipped"
    return name + suffix


def _check(name: str, builder: str, game: str, part: Part) -> None:
    if not 1 <= part.percent <= 100:
        raise UsageError(f"dataset {name!r}: percent must be from 1 to 100, got {part.percent}")
    if part.checkpoints is None:
        return
    if builder != BUILDERS[1]:
        raise UsageError(
            f"dataset {name!r}: {builder} is not divided into checkpoints, {BUILDERS[1]} is"
        )
    first, last = part.checkpoints
    if not first <= last < num_checkpoints(game):
        raise UsageError(
            f"dataset {name!r}: checkpoints are a first and a last of 0 to "
            f"{num_checkpoints(game) - 1}, got {first}-{last}"
        )


def splits(available: Sequence[str], part: Part) -> list[str]:
    """The TFDS splits of a part of a dataset with the `available` ones, in the order of the run."""
    chosen = list(available)
    if part.checkpoints:
        chosen = [
            f"checkpoint_{index:02d}"
            for index in range(part.checkpoints[0], part.checkpoints[1] + 1)
        ]
    return chosen if part.percent == 100 else [f"{split}[:{part.percent}%]" for split in chosen]


# --- the local datasets; `collect.atari` makes them ---

LOCAL_STEPS = 50_000
EPSILONS = (1.0, 0.5, 0.25, 0.1)  # probabilities of a uniform action, by episode in turn
TRACKED = ("Breakout", "Pong")  # games whose script tracks the ball


def behavior(game: str) -> str:
    """A description of the behavior policy of a local dataset."""
    script = (
        "the paddle goes to where the ball will arrive"
        if game in TRACKED
        else "the previous action is repeated"
    )
    return (
        f"scripted, nothing is learned: {script}; in each episode a uniform action replaces the "
        f"script's with the episode's own probability, in turn {', '.join(map(str, EPSILONS))}"
    )
