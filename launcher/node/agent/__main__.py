"""Start the agent: `python code/node/agent/__main__.py`. Naming the file spares the import of runpy."""

import gc
import os
import sys

gc.disable()  # until the agent runs: nothing is garbage yet

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from node.agent.startup import main  # type: ignore[import-not-found]  # noqa: E402 - a host's launcher.node

sys.exit(main(sys.argv[1:]))
