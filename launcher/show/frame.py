"""One frame of a run in the terminal: lines of a given width, from its picture. Pure."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.cells import cell_len
from rich.text import Text

from launcher.machine.language.spoken import said, shown
from launcher.rundir.picture import Count, Node, Phase, Picture, Rank, Score
from launcher.rundir.verdict import over_same_records
from launcher.show.chart import chart

GIB = 1 << 30
STATE_STYLE = {"SUCCEEDED": "bold green", "CANCELLED": "bold yellow", "PENDING": "bold", "RUNNING": "bold cyan"}
TONE_STYLE = {"good": "bold green", "warning": "bold yellow", "bad": "bold red", "unknown": "bold"}
LABEL = 14
"""Columns of the names of rows, with the blanks before and after."""
MOST_NODES = 4
LEAST_CHART, MOST_CHART = 5, 20
CLOSING = ",。!?;:、)」』】》”’"
"""Wide punctuation that begins no line."""
LATE_HEARTBEAT = 15.0
"""Seconds after which a heartbeat is marked: agents send one every five."""


class Sheet:
    """Lines that never become wider than the sheet. Wide characters count two columns."""

    def __init__(self, width: int, encoding: str = "utf-8", *, fold: bool = True) -> None:
        self.width, self.fold = max(20, width), fold
        self.encoding = encoding
        self.fancy = encoding.lower().replace("-", "").replace("_", "") == "utf8"
        self.lines: list[Text] = []

    def text(self, text: str) -> str:
        """What will be seen of a text: characters that the encoding lacks are escaped, which makes them wider."""
        clean = "".join(char if char.isprintable() else " " for char in text)
        return clean.encode(self.encoding, "backslashreplace").decode(self.encoding)

    def add(self, line: Text) -> None:
        """A line that is cut at the edge."""
        if self.fold:
            line.truncate(self.width, overflow="ellipsis" if self.fancy else "crop")
        self.lines.append(line)

    def row(self, name: str, value: str | Text, style: str = "", *, most: int | None = None) -> None:
        """A named row, folded below its begin; `most`: lines at most."""
        content = value if isinstance(value, Text) else Text(self.text(value), style=style)
        pieces = self._folded(content, self.width - LABEL) if self.fold else [content]
        for place, piece in enumerate(pieces[:most]):
            head = self.text(name) if place == 0 else ""
            self.add(Text(f"  {head}{' ' * (LABEL - 2 - cell_len(head))}", style="dim") + piece)

    def paragraph(self, text: str, style: str = "", indent: int = 2) -> None:
        content = Text(self.text(text), style=style)
        for piece in self._folded(content, self.width - indent) if self.fold else [content]:
            self.add(Text(" " * indent) + piece)

    def _folded(self, text: Text, width: int) -> list[Text]:
        """A text in pieces of at most `width` columns, cut at blanks and beside wide characters where there are any."""
        cuts: list[int] = []
        columns, blank, width = 0, 0, max(8, width)
        for place, char in enumerate(text.plain):
            wide = cell_len(char) > 1
            if char == " " or (wide and char not in CLOSING):
                blank = place
            if columns + cell_len(char) > width:
                cut = blank if blank > (cuts[-1] if cuts else 0) else place
                cuts.append(cut)
                columns = cell_len(text.plain[cut:place].removeprefix(" "))
            columns += cell_len(char)
        pieces = list(text.divide(cuts))
        return [piece[1:] if number and piece.plain.startswith(" ") else piece for number, piece in enumerate(pieces)]


def frame(picture: Picture, *, width: int, height: int, encoding: str = "utf-8", footer: str = "") -> list[Text]:
    """The live view: as many lines as fit `height`, the most important first."""
    sheet = Sheet(width, encoding)
    _head(sheet, picture)
    _numbers(sheet, picture)
    _places(sheet, picture, MOST_NODES if height > 30 else 1)
    if picture.failure is not None:
        _failure(sheet, picture, most=2)
    below = Sheet(width, encoding)
    if picture.verdict is not None:
        _verdict(below, picture)
    if footer:
        below.add(Text(f" {below.text(footer)}", style="dim"))
    room = height - len(sheet.lines) - len(below.lines)
    lines = _chart(sheet, picture, room)
    events = _events(sheet, picture, room - len(lines))
    blank = [Text("")] * (room - len(lines) - len(events))
    return [*sheet.lines, *lines, *events, *blank, *below.lines][:height]


def report(picture: Picture, *, width: int, encoding: str = "utf-8", fold: bool = True) -> list[Text]:
    """The run as `zlaunch status` prints it once: everything but the events."""
    sheet = Sheet(width, encoding, fold=fold)
    where = " ".join((str(picture.backend), *picture.ids))
    state = Text(sheet.text(said(picture.state)), style=STATE_STYLE.get(picture.state, "bold red"))
    sheet.add(Text(f"{sheet.text(picture.run)}: ") + state + Text(f" ({sheet.text(where)})"))
    if picture.verdict is not None:
        _verdict(sheet, picture)
    sheet.row(said("directory"), picture.directory)
    if picture.phase != "ended":
        _position(sheet, picture)
    if picture.loss is not None:
        total = f"/{picture.total_steps}" if picture.total_steps and picture.total_steps != picture.step else ""
        progress = said("step {step}, loss {loss}", step=f"{picture.step}{total}", loss=f"{picture.loss:.4f}")
        sheet.row(said("progress"), progress + _rate(picture))
    _numbers(sheet, picture, loss=False)
    for node in picture.nodes:
        ranks = ", ".join(map(_rank, node.ranks))
        sheet.row(said("node {number}", number=node.node_rank), f"{node.host} {said(str(node.state))}: {ranks}")
    if picture.restarts:
        sheet.row(said("restarts"), str(picture.restarts))
    if picture.checkpoints:
        sheet.row(said("checkpoints"), ", ".join(said("step {step}", step=step) for step in picture.checkpoints))
    if len(picture.curve) > 1:
        sheet.lines += _chart(sheet, picture, 12, width=min(sheet.width, 100))
    if picture.state == "SUCCEEDED" and not picture.is_program:
        for step in picture.next_steps:
            sheet.row(said("next"), step)
    return sheet.lines


def curve_lines(picture: Picture, *, width: int, encoding: str = "utf-8") -> list[Text]:
    """The chart of the losses, for the summary of a run."""
    return _chart(Sheet(width, encoding), picture, 18)


def one_line(picture: Picture) -> str:
    """Where the run stands, for a pipe."""
    step = f"{picture.step}/{picture.total_steps or '?'}"
    parts = [said("step {step}", step=step) if picture.phase == "train" else said(picture.phase_text)]
    if picture.phase != "train" and picture.count is not None:
        parts.append(amount(picture.count))
    if picture.phase == "train" and picture.loss is not None and picture.step:
        parts.append(said("loss {loss}", loss=f"{picture.loss:.4f}"))
        if picture.held_out:
            parts.append(said("held out {loss}", loss=f"{picture.held_out[-1].loss:.4f}"))
        if picture.tokens_per_second:
            parts.append(said("{speed} tokens/s", speed=f"{picture.tokens_per_second:,.0f}"))
        if picture.peak_bytes:
            parts.append(f"{picture.peak_bytes / GIB:.1f} GiB")
    if picture.seconds_left is not None:
        parts.append(said("{time} left", time=duration(picture.seconds_left)))
    return "  ".join(parts)


def _rate(picture: Picture) -> str:
    """`, 1,798 tokens/s`; empty: not known."""
    speed = picture.tokens_per_second
    return said(", {speed} tokens/s", speed=f"{speed:,.0f}") if speed else ""


def _head(sheet: Sheet, picture: Picture) -> None:
    """The run and its state, and below them how far it is."""
    where = [str(picture.backend)]
    if picture.world_size:
        ranks = "{count} rank" if picture.world_size == 1 else "{count} ranks"
        where.append(said(ranks, count=picture.world_size))
    state = Text(f"  {sheet.text(said(picture.state))}", style=STATE_STYLE.get(picture.state, "bold red"))
    right = Text(" · ".join(where) if sheet.fancy else ", ".join(where), style="dim") + state
    name = Text(sheet.text(picture.run), style="bold")
    name.truncate(max(8, sheet.width - right.cell_len - 3), overflow="ellipsis" if sheet.fancy else "crop")
    sheet.add(Text(" ") + name + Text(" " * max(1, sheet.width - name.cell_len - right.cell_len - 2)) + right)
    _position(sheet, picture)


def _position(sheet: Sheet, picture: Picture) -> None:
    """The phase, its count and the time left; below them a bar, if the end is known."""
    now = picture.phases[-1]
    left = said("{time} left", time=duration(picture.seconds_left)) if picture.seconds_left is not None else ""
    if not left and now.started and picture.state in ("RUNNING", "PENDING"):
        left = said("for {time}", time=duration(max(0.0, picture.read_at - now.started)))
    left = sheet.text(left)
    text = Text(f" {sheet.text(said(picture.phase_text))}", style="bold")
    if picture.count is not None:
        text.append(f"  {sheet.text(amount(picture.count))}", style="")
    text.append(" " * max(2, sheet.width - text.cell_len - cell_len(left) - 1) + left, style="")
    sheet.add(text)
    if picture.count is not None and picture.count.total:
        sheet.add(_bar(sheet, min(1.0, picture.count.done / picture.count.total), sheet.width - 2))


def _bar(sheet: Sheet, share: float, width: int, style: str = "cyan") -> Text:
    done = round(share * width)
    full, rest = ("━", "─") if sheet.fancy else ("#", ".")
    return Text(" ") + Text(full * done, style=style) + Text(rest * (width - done), style="dim")


def amount(count: Count) -> str:
    """`step 31 of 63, 49%` · `3.1 of 15.2 GB` · `1,200 records`."""
    if count.unit == "bytes":
        done = f"{count.done / 1e9:.2f}"
        total = f"{count.total / 1e9:.2f}" if count.total else ""
        return said("{done} of {total} GB", done=done, total=total) if total else f"{done} GB"
    if count.unit == "steps":
        share = f"{count.done / count.total:.0%}" if count.total else ""
        step = said("step {step} of {total}", step=count.done, total=count.total or "?")
        return said("{step}, {share}", step=step, share=share) if share else step
    unit = said(count.unit)
    if not count.total:
        return f"{count.done:,} {unit}"
    many = count.unit == "records" and count.total > 10_000
    return said(
        "{done} of about {total} {unit}" if many else "{done} of {total} {unit}",
        done=f"{count.done:,}", total=f"{count.total:,}", unit=unit,
    )  # fmt: skip


def _numbers(sheet: Sheet, picture: Picture, *, loss: bool = True) -> None:
    if picture.loss is not None and loss:
        value = Text(f"{picture.loss:.4f}", style="bold")
        if picture.loss_smoothed is not None and len(picture.curve) > 2:
            value.append(sheet.text(said("   smoothed {loss}", loss=f"{picture.loss_smoothed:.4f}")), style="")
        sheet.row(said("loss"), value)
    measured = over_same_records(picture.held_out)
    if measured:
        first, last = measured[0], measured[-1]
        change = f"{last.loss:.4f}"
        if len(measured) > 1:
            change = said("{first} to {last}", first=f"{first.loss:.4f}", last=change)
        on = said(", on {count} records", count=last.records) if last.records else ""
        sheet.row(said("held out"), said("{change}, after step {step}", change=change, step=last.step) + on)
    if picture.best is not None:
        kept = said(", the adapter") if picture.adapter_step == picture.best.step else ""
        best = f"{said(picture.best.metric)} {picture.best.value:.4f}{kept}"
        sheet.row(said("best"), said("step {step}, {best}", step=picture.best.step, best=best))
    if picture.learning_rate is not None and picture.phase == "train":
        length = picture.grad_norm
        norm = said("   gradient norm {norm}", norm=f"{length:.2f}") if length is not None else ""
        epoch = f"   epoch {picture.epoch:.2f}" if picture.epoch is not None else ""
        sheet.row(said("rate"), f"{picture.learning_rate:.2e}{norm}{epoch}")
    if picture.tokens_per_second and picture.phase == "train":
        share = picture.speed_share
        planned = said(", {share} of the planned speed", share=f"{share:.0%}") if share else ""
        speed = said("{speed} tokens/s", speed=f"{picture.tokens_per_second:,.0f}")
        sheet.row(said("speed"), speed + planned)
    _memory(sheet, picture)


def _memory(sheet: Sheet, picture: Picture) -> None:
    """The most that the ranks have taken, beside the plan."""
    ranks = [rank for node in picture.nodes for rank in node.ranks if rank.peak_bytes]
    if not ranks:
        return
    plan = picture.planned_bytes
    if len(ranks) > 2:
        least, most = min(rank.peak_bytes or 0 for rank in ranks), max(rank.peak_bytes or 0 for rank in ranks)
        sizes = said(
            "{least} to {most} GiB on {count} ranks",
            least=f"{least / GIB:.1f}", most=f"{most / GIB:.1f}", count=len(ranks),
        )  # fmt: skip
    else:
        several = len(ranks) > 1 or picture.world_size != 1
        each = [(said("rank {rank} ", rank=one.rank) if several else "", (one.peak_bytes or 0) / GIB) for one in ranks]
        sizes = "   ".join(f"{name}{size:.1f} GiB" for name, size in each)
    planned = said(", planned {size} GiB", size=f"{plan / GIB:.1f}") if plan else ""
    sheet.row(said("memory"), sizes + planned)


def _places(sheet: Sheet, picture: Picture, most: int) -> None:
    """The nodes, the silent ones first; and the phases behind the run."""
    late = sorted(picture.nodes, key=lambda node: (not _is_late(node, picture), node.node_rank))
    for node in late[:most] if picture.state == "RUNNING" else ():
        beat = ""
        if _is_late(node, picture):
            beat = said(", no sign of life for {time}", time=duration(picture.read_at - (node.heartbeat or 0)))
        several = "rank {ranks}" if len(node.ranks) == 1 else "ranks {ranks}"
        ranks = said(several, ranks=_span([rank.rank for rank in node.ranks])) if node.ranks else ""
        last = node is late[:most][-1] and len(late) > most
        more = said("   and {count} more nodes", count=len(late) - most) if last else ""
        name = said("node {number}", number=node.node_rank)
        sheet.row(name, f"{node.host} {ranks}{beat}{more}", "yellow" if beat else "", most=1)
    behind = [phase for phase in picture.phases[:-1] if phase.started and phase.ended]
    if behind:
        joint = " · " if sheet.fancy else ", "
        done = joint.join(f"{said(_short(phase))} {duration(_took(phase))}" for phase in behind)
        sheet.row(said("done"), done, "dim", most=1)


def _is_late(node: Node, picture: Picture) -> bool:
    return node.state == "RUNNING" and picture.read_at - (node.heartbeat or picture.read_at) > LATE_HEARTBEAT


def _took(phase: Phase) -> float:
    return (phase.ended or 0.0) - (phase.started or 0.0)


SHORT = {"data": "records", "evaluate_before": "evaluation", "evaluate_after": "evaluation", "train": "training"}


def _short(phase: Phase) -> str:
    return SHORT.get(phase.name, phase.name)


def _span(ranks: Sequence[int]) -> str:
    return str(ranks[0]) if len(ranks) == 1 else said("{first} to {last}", first=min(ranks), last=max(ranks))


def _rank(rank: Rank) -> str:
    if rank.signal:
        return said("rank {rank} ended by signal {signal}", rank=rank.rank, signal=rank.signal)
    if rank.exit_code is None:
        return said("rank {rank} pid {pid}", rank=rank.rank, pid=rank.pid)
    return said("rank {rank} exit {code}", rank=rank.rank, code=rank.exit_code)


def _verdict(sheet: Sheet, picture: Picture) -> None:
    verdict = picture.verdict
    assert verdict is not None
    sheet.paragraph(shown(verdict.line), TONE_STYLE[verdict.tone])
    sheet.paragraph(shown(verdict.reason), "dim")


def _failure(sheet: Sheet, picture: Picture, most: int) -> None:
    failure = picture.failure or {}
    sheet.row(said("cause"), f"{failure.get('cause')}: {shown(str(failure.get('message')))}", "red", most=most)


def _chart(sheet: Sheet, picture: Picture, room: int, width: int | None = None) -> list[Text]:
    """The smoothed loss and the held-out losses, if there is room for them beside some events."""
    height = min(MOST_CHART, room - (4 if room < 20 else 9) if room < 40 else MOST_CHART)
    if height < LEAST_CHART or len(picture.curve) < 2:
        return []
    held_out = [(point.step, point.loss) for point in over_same_records(picture.held_out)]
    curve = [(point.step, point.smoothed) for point in picture.curve]
    last = picture.total_steps if picture.phase == "train" else None
    title = Text(f"  {sheet.text(said('training loss'))}", style="cyan")
    if held_out:
        title += Text(f"   o {sheet.text(said('held out'))}", style="magenta")
    lines = chart(curve, held_out, width=(width or sheet.width) - 2, height=height - 2, last=last, fancy=sheet.fancy)
    found = [title, *(Text("  ") + line for line in lines)]
    for line in found:
        line.truncate(sheet.width)
    return found


def _events(sheet: Sheet, picture: Picture, room: int) -> list[Text]:
    """The newest events that fit, folded, with a line of space above them."""
    found: list[Text] = []
    for event in reversed(picture.events):
        if event.text is None or len(found) >= room - 1:
            continue
        lines = Sheet(sheet.width, sheet.encoding)
        style = "yellow" if event.event in ("warning", "restart", "node_lost") else ""
        clock = time.strftime("%H:%M:%S", time.localtime(event.time)) if event.time else ""
        lines.row(clock, shown(event.text), style, most=3)
        if len(found) + len(lines.lines) > room - 1:
            break
        found = [*lines.lines, *found]
    return [Text(""), *found] if found else []


def duration(seconds: float) -> str:
    """`45 s`, `2 min 05 s`, `1 h 12 min`, `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 10 or whole == seconds else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def score_rows(scores: Sequence[Score], shown: Callable[[str], str] = str) -> list[tuple[str, str, str, str, str]]:
    """(task, records, metric, before, after) as text. A row over several tasks names them."""
    rows = []
    for score in scores:
        digits = 4 if score.metric == "loss" else 3
        before = "-" if score.before is None else f"{score.before:.{digits}f}"
        task = said("all records")
        if score.task or score.over:
            task = score.task or said("records of {tasks}", tasks=", ".join(score.over))
        rows.append((shown(task), str(score.records or ""), said(score.metric), before, f"{score.after:.{digits}f}"))
    return rows
