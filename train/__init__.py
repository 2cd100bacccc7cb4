"""The shared training program of zlaunch: `python -m train --config train.json`."""

import logging

# On a CPU without the package `kernels`, which nothing here needs, bitsandbytes warns in every process that imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
