"""The stacks of a run that hung, side by side: one column for the ranks that were at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from launcher.show.terminal import Console

MOST_COLUMNS = 4


def print_stacks(groups: Sequence[dict[str, Any]], console: Console) -> None:
    """Print the groups of a `hang` event (launcher/node/hangs.py: group_stacks). Odd ones come first if space is
    short."""
    shown = sorted(groups, key=lambda group: not group.get("odd"))[:MOST_COLUMNS]
    if not shown:
        return
    table = Table(title="stacks, innermost call first", title_justify="left")
    for group in shown:
        odd = bool(group.get("odd"))
        mark = " <- differs" if odd else ""
        table.add_column(f"{ranks_of(group)}{mark}", style="bold yellow" if odd else "", overflow="fold")
    table.add_row(*(_text(group) for group in shown))
    console.print(table)
    if len(groups) > len(shown):
        console.print(f"and {len(groups) - len(shown)} more places; see logs/node-*/stack-*.txt", highlight=False)


def ranks_of(group: dict[str, Any]) -> str:
    """`rank 1`, or `ranks 0, 2-7`."""
    numbers = [int(rank) for rank in group.get("ranks") or ()]
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    listed = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts[:8])
    return f"ranks {listed}{', ...' if len(parts) > 8 else ''}"


def _text(group: dict[str, Any]) -> str:
    """What the ranks were doing, and their calls."""
    head = [f"on {', '.join(map(str, group.get('hosts') or ()))}", f"{group.get('doing')}"]
    if group.get("state"):
        head.append(str(group["state"]))
    lines = [*head, "", *map(str, group.get("frames") or ())]
    return escape("\n".join(lines))
