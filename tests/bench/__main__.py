"""`make bench`: run every benchmark that needs no GPU, or those named: python -m tests.bench startup ssh_fanout"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    apart = {"quality", "multi"}  # these need GPUs and have their own targets: `make quality`, `make bench-multi`
    names = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - apart
    known = sorted(name for name in names if not name.startswith("_"))
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"no benchmark {name!r}; there are: {', '.join(known)}")
        print(f"== {name}", flush=True)
        importlib.import_module(f"tests.bench.{name}").main()


if __name__ == "__main__":
    main()
