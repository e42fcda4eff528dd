"""Compares runs: the same as `offline-mbrl report`, for example

python experiments/report.py runs/rosmo-local-catch runs/bc-local-catch
"""

import sys

from offline_mbrl import cli

if __name__ == "__main__":
    sys.exit(cli.main(["report", *sys.argv[1:]]))
