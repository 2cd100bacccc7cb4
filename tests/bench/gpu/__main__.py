"""`python -m tests.bench.gpu`: see the package."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import gpu
from tests.bench.gpu import answers, cases, children, tables
from tests.bench.gpu.cases import Case

TABLES = {"speed": cases.speed_cases, "memory": cases.memory_cases}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=(gpu.__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="speed | memory | case KEY=VALUE ... | answers KEY=VALUE ...")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="for results, profiles and logs (%(default)s)")
    parser.add_argument("--scratch", type=Path, help="for random checkpoints; default: a temporary directory")
    parser.add_argument("--timeout", type=float, default=150.0, help="seconds per case (%(default)s)")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    what: list[str] = options.what or list(TABLES)
    if what[0] == "child":
        children.serve(what[1], options.out, options.scratch)
        return 0
    if what[0] == "answers":
        answers.measure(what[1:])
        return 0
    if what[0] == "case":
        try:
            wanted = {"case": [cases.case_of(what[1:])]}
        except ValueError as error:
            parser.error(str(error))
    elif unknown := set(what) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    else:
        wanted = {name: TABLES[name]() for name in what}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as place:
        scratch = options.scratch or Path(place)
        found = _measured([case for part in wanted.values() for case in part], options.out, scratch, options.timeout)
    for name, part in wanted.items():
        print("\n" + tables.markdown(name, [(case, found[case]) for case in part if case in found]))
    return 1 if any("failed" in line for line in found.values()) else 0


def _measured(wanted: list[Case], out: Path, scratch: Path, timeout: float) -> dict[Case, dict[str, object]]:
    """Print and keep the result of each case as it arrives."""
    found: dict[Case, dict[str, object]] = {}
    started = before = time.monotonic()
    with (out / "results.jsonl").open("a", encoding="utf-8") as file:
        for case, line in children.answers(cases.jobs(wanted), out, scratch, timeout):
            now = time.monotonic()
            found[case] = {"case": case.name, **tables.with_share(case, line), "seconds": round(now - before, 1)}
            before = now
            for place in (file, sys.stdout):
                print(json.dumps(found[case]), file=place, flush=True)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
