"""Feed one tracker until standard input ends, which is when the run has: python -m train.trackers NAME --run-dir DIR"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from train.trackers.feed import Feed
from train.trackers.services import SERVICES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m train.trackers")
    parser.add_argument("tracker", choices=sorted(SERVICES))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="the record of the first node")
    options = parser.parse_args()
    os.nice(5)  # the ranks come first
    return Feed(options.tracker, options.run_dir, options.record).run()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a package's threads and exit handlers have had their time
