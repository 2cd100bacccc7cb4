"""`python code/node/agent`, or quicker (without runpy) `python code/node/agent/__main__.py`.

Neither makes the directory a package; code/ on the path does.
"""

import gc
import os
import sys

gc.disable()  # until the ranks are started: nothing is garbage yet, and looking for it costs as much as an import

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from node.agent.startup import main  # type: ignore[import-not-found]  # noqa: E402 - a host's launcher.node

sys.exit(main(sys.argv[1:]))
