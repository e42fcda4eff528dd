"""Throughput of ROSMO's Atari network on a GPU, at 128 and 512 windows and in both precisions.

    python experiments/gpu/atari.py --folder ../gpu-rows/atari
    python experiments/gpu/atari.py --small --folder ../try/atari

As `speed.py` in everything else. Frames are random and lie on the device; stacking them is part of
the update.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from experiments.gpu import measured, speed
from experiments.gpu.speed import Options

SCRIPT = "experiments/gpu/atari.py"
PAGE = "atari.md"


def main(options: Options) -> int:
    """Runs the script; the exit code."""
    cases = measured.atari_cases(measured.SMALL if options.small else measured.LARGE)
    return speed.carry_out(cases, options, SCRIPT, PAGE)


if __name__ == "__main__":
    speed.run_script(main, __doc__)
