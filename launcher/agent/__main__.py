"""`python code/agent`, or quicker (without runpy) `python code/agent/__main__.py`.

Neither makes the directory a package; its parent on the path does.
"""

import gc
import os
import sys

gc.disable()  # until the ranks are started: nothing is garbage yet, and looking for it costs as much as an import

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from agent.main import main  # type: ignore[import-not-found]  # noqa: E402 - on a host launcher.agent is `agent`

sys.exit(main(sys.argv[1:]))
