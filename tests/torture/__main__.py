"""Run the campaigns to their full counts and write their table into docs/trust.md: `make torture`.

    python -m tests.torture [--seed N] [--part FRACTION] [CAMPAIGN...]

Only the rows of the campaigns that ran are replaced. The exit status is 1 if something was found.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.beds.places import ROOT

CAMPAIGNS = {
    "job_files": 8_000,
    "hostfiles": 3_500,
    "data_files": 3_500,
    "run_directories": 3_000,
    "chat_templates": 2_000,
    "checkpoints": 2_500,
    "hostile_answers": 20_000,
    "faults": 300,
}
"""{module: number of cases}. The first five are 20,000 inputs."""
PAGE = ROOT / "docs" / "trust.md"
BEGIN, END = "<!-- table of make torture -->", "<!-- end of the table -->"
HEAD = "| campaign | what was tried | cases | seed | what became of them | wrong now |\n|---|---|---|---|---|---|"


def with_rows(page: str, rows: list[str]) -> str:
    """The page with these rows in its table; a row replaces the earlier one of its campaign."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    known = {row.split("|")[1].strip(): row for row in table.strip().splitlines()[2:]}
    known.update({row.split("|")[1].strip(): row for row in rows})
    return "\n".join((f"{before}{BEGIN}", HEAD, *known.values(), f"{END}{after}"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make torture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("campaigns", nargs="*", metavar="CAMPAIGN", help=f"of {', '.join(CAMPAIGNS)}; all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--part", type=float, default=1.0, help="of the full counts; below 1 the page stays as it is")
    chosen = parser.parse_args()
    if unknown := set(chosen.campaigns) - set(CAMPAIGNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = False
    for name in chosen.campaigns or CAMPAIGNS:
        count = max(1, round(CAMPAIGNS[name] * chosen.part))
        outcome = importlib.import_module(f"tests.torture.{name}").main(count, chosen.seed)
        print(outcome.summary, *outcome.found, sep="\n  ", flush=True)
        failed = failed or bool(outcome.found)
        if chosen.part >= 1:
            PAGE.write_text(with_rows(PAGE.read_text(encoding="utf-8"), [outcome.row]), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
