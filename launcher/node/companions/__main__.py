"""Report an end that no agent saw, from Slurm's batch script:

    python -S code/node/companions --run-dir DIR --kind KIND --reason TEXT

The secrets come as JSON on standard input. Does nothing if the end of this start was reported already.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from node.companions.late import main  # type: ignore[import-not-found]  # a host's launcher.node

    sys.exit(main(sys.argv[1:]))
