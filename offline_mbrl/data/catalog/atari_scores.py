"""Published Atari scores: the references of normalized scores, and the results of other methods.

Mean returns of whole episodes with sticky actions, but for the last two columns. Sources:

| columns | of | from |
|---|---|---|
| `random`, `dqn` (online) | RL Unplugged, which they normalize | arXiv:2006.13888 |
| `bc`, `bcq`, `iqn`, `rem` | its baselines | arXiv:2104.06294, appendix |
| `crr`, `mzu` | CRR on the MuZero network, MuZero Unplugged | arXiv:2104.06294, appendix |
| `random*`, `human*` | the human scale, no-op starts | `google-deepmind/dqn_zoo`, `atari_data.py` |

The appendix of arXiv:2104.06294 ("Online and Offline Reinforcement Learning by Planning with a
Learned Model") lists all of them for the 46 games whose data it trained on. It differs from dqn_zoo
in two figures of the human scale, where dqn_zoo's stand here: random in VideoPinball (0 in the
paper, which no random policy scores) and human in FishingDerby (-38.8). Two games have no human
scale. Values are rounded as published in the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from offline_mbrl.types import UsageError


class Game(NamedTuple):
    """Mean returns in one game."""

    random: float
    dqn: float  # online
    bc: float
    bcq: float
    iqn: float
    rem: float
    crr: float
    mzu: float
    ale_random: float  # NaN where unknown, like `human`
    human: float


METHODS = ("bc", "bcq", "iqn", "rem", "crr", "mzu")
TUNING_GAMES = (  # settings are chosen on these; the other 37 are for testing only
    "BeamRider",
    "DemonAttack",
    "DoubleDunk",
    "IceHockey",
    "MsPacman",
    "Pooyan",
    "RoadRunner",
    "Robotank",
    "Zaxxon",
)

_TABLE = """
game           random      dqn       bc      bcq      iqn      rem      crr      mzu random*  human*
Alien           199.8     2767     2670     2090     2860     1730     3658     6335   227.8    7128
Amidar            3.2     1557      256      254      351      214    499.3    962.7     5.8    1720
Assault         235.2     1946     1810     2260     2180     3070     8538    13407   222.4     742
Asterix         279.1     4132     2960     1930     5710     4890    10484    34674     210    8503
Atlantis        16973   944228  2390000  3200000  2710000  3360000   888496   873652   12850   29028
BankHeist        13.7    907.7     1050      270     1110      160     1072     1168    14.2   753.1
BattleZone       2787    26459     4800    25400    16500    26200    34455    65815    2360   37188
BeamRider       362.1     6453     1480     1990     3020     2200    13966    33151   363.9   16927
Boxing            0.8     84.1     83.9     97.2     95.8     97.3     95.6     99.4     0.1    12.1
Breakout          1.3    157.9      235      375      314      362    435.1    582.2     1.7    30.5
Carnival        669.5     5340     3920     4310     4820     2080     5589     5610       -       -
Centipede        2182     3972     1070     1430     1830      810     3954    10764    2091   12017
ChopperCommand  823.1     3678      660     3950      830     3610    10315    41567     811    7388
CrazyClimber     8174   118080   123000    28000   126000    42000   135524   167372   10780   35829
DemonAttack       166     6517     7600    19300    15500    17000   101627   212936   152.1    1971
DoubleDunk      -18.4     -1.2    -16.4    -12.9    -16.7    -17.9      0.5     20.9   -18.6   -16.4
Enduro              0     1016      720     1390     1700     3650     2335     2334       0   860.5
FishingDerby    -93.2     18.6     -7.4     28.9     20.8     29.3     24.8       46   -91.7   -38.7
Freeway             0     26.8     21.8     16.9     24.7      7.2     33.7     32.4       0    29.6
Frostbite          72     1644      780     3520     2630     3070     3812     5095    65.2    4335
Gopher          282.6     8241     4900     8700    11300     3700    34731   101380   257.6    2412
Gravitar        213.7    310.6       20      580      235      424    479.5     1892     173    3351
Hero            719.1    16234    13900    13200    16200    14000    20615    20757    1027   30826
IceHockey        -9.8       -4     -5.6     -2.5     -4.7     -1.2     -1.5     20.7   -11.2     0.9
Jamesbond        27.6    777.7      237      438      699      369    670.8    945.2      29   302.8
Kangaroo         41.3    14125     5690     1300     9120     1210    14463    14736      52    3035
Krull            1557     7238     8500     7780     8470     7980     8624     9815    1598    2666
KungFuMaster    556.3    26638     5100    16900    19500    19400    28020    61354   258.5   22736
MsPacman          248     4172     4040     3080     4390     3150     6241    10934   307.3    6952
NameThisGame     2401     8645     4100    12600     9900    13000    17095    27429    2292    8049
Phoenix           873     5122     2940     6620     4940     7480    16699    32533   761.4    7243
Pong            -20.3     18.2     18.9     16.5     19.2     16.5     19.7     20.6   -20.7    14.6
Pooyan          411.4     4135     3850     4200     5000     4470     8083    13630       -       -
Qbert             155    12275    12600    12600    13400    13100    14901    14943   163.9   13455
Riverraid        1504    12799     6000    14200    13000    14200    21091    22246    1338   17118
RoadRunner       15.5    47880    19000    57400    44700    56500    59338    60465    11.5    7845
Robotank            2     63.4     15.7     60.7     42.7     60.5     69.4     91.1     2.2    11.9
Seaquest         81.8     3234      150     5410     1670     5910     7514     8412    68.4   42055
SpaceInvaders   149.5     2045      790     2920     2840     2810    35376    55705     148    1669
StarGunner      677.2    55104     3000     2500    39400     7500    86955   145712     664   10250
TimePilot        3451     4160     1950     5180     3140     4490     5282     9428    3568    5229
UpNDown         513.9    15678    16300    32500    32300    27600   124784   251928   533.4   11693
VideoPinball    26024   335056    27000   103000   102000   313000   537486   462318 16256.9 17667.9
WizardOfWor     686.6     1788      730     4680     1400     2730     7531    40651   563.5    4757
YarsRevenge      3148    26763    19100    29100    28400    23100    56553   141317    3093   54577
Zaxxon           10.6     4682       10     9430      870     8300     9397    16144    32.5    9173
"""


def _parse(table: str) -> dict[str, Game]:
    rows = [line.split() for line in table.strip().splitlines()[1:]]
    return {
        row[0]: Game(*(float("nan" if cell == "-" else cell) for cell in row[1:])) for row in rows
    }


GAMES = _parse(_TABLE)
TESTING_GAMES = tuple(game for game in GAMES if game not in TUNING_GAMES)


def column(name: str, games: Sequence[str] = tuple(GAMES)) -> np.ndarray:
    """A column of the table, `[games]`, by the name of a field of `Game`.

    Raises:
      UsageError: a game is not in the table.
    """
    return np.array([getattr(_game(game), name) for game in games])


def dqn_normalized(scores: np.ndarray, games: Sequence[str] = tuple(GAMES)) -> np.ndarray:
    """RL Unplugged's score `[..., games]`: 0 for the random policy, 1 for the online DQN.

    Args:
      scores: `[..., games]` raw returns.
      games: names of the games, in the order of the last axis.
    """
    return _between(scores, column("random", games), column("dqn", games))


def human_normalized(scores: np.ndarray, games: Sequence[str] = tuple(GAMES)) -> np.ndarray:
    """The human scale `[..., games]`: 0 for the random policy, 1 for a human, NaN where unknown.

    Args:
      scores: `[..., games]` raw returns.
      games: names of the games, in the order of the last axis.
    """
    return _between(scores, column("ale_random", games), column("human", games))


def _between(scores: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return (np.asarray(scores, np.float64) - low) / (high - low)


def _game(name: str) -> Game:
    if name not in GAMES:
        raise UsageError(
            f"no published scores for the Atari game {name!r}; the games: {', '.join(GAMES)}"
        )
    return GAMES[name]
