"""Plays the policies of a run: the same as `offline-mbrl evaluate`, for example

python experiments/evaluate.py runs/rosmo-local-catch --episodes 1000
"""

import sys

from offline_mbrl import cli

if __name__ == "__main__":
    sys.exit(cli.main(["evaluate", *sys.argv[1:]]))
