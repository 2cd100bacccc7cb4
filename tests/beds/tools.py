"""Run several commands of the training package in one process, so that torch is imported once.

argv[1]: JSON list of [module, arguments, standard input]. Prints one JSON object: {"status": [...], "output": [...]}.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import traceback
from pathlib import Path

statuses, outputs = [], []
for module, arguments, stdin in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    text = io.StringIO()
    sys.stdin = io.StringIO(stdin)
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            statuses.append(importlib.import_module(module).main(arguments))
        except Exception:
            traceback.print_exc(file=text)
            statuses.append(1)
    outputs.append(text.getvalue())
print(json.dumps({"status": statuses, "output": outputs}))
