"""Trains, evaluates and reports: the same as `offline-mbrl train`, for example

python experiments/train.py rosmo --dataset local/catch --seeds 5
"""

import sys

from offline_mbrl import cli

if __name__ == "__main__":
    sys.exit(cli.main(["train", *sys.argv[1:]]))
