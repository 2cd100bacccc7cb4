"""Feed one tracker: open it, hand on the new points, and end it in bounded time when the run has ended.

The tracker's calls may fail (reported once, tried again), hang (reported once, waited for) or crash (the warden reports
it). None of that is felt by the run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.trackers.points import Curves, Point, on_one_line, read, scores_of, settings_of, without_secrets
from train.trackers.services import SERVICES, About

POLL = 2.0
"""Seconds between looks at metrics.jsonl."""
STALLED = 120.0
"""Seconds that one call may take before it is reported."""
LAST_SECONDS = {"SUCCEEDED": 30.0, "FAILED": 30.0}
"""For the last flush, by the state of the run."""
LAST_SECONDS_STOPPED = 10.0
"""The same of a run that was stopped: a scheduler may be waiting."""
PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds before a failed call is tried again."""
REPORTED = 3
"""Exit status of a tracker that has reported its failure itself (launcher/node/companions/beside.py)."""
MOST_AT_ONCE = 1000


class Feed:
    def __init__(self, tracker: str, run_dir: Path, record: Path) -> None:
        self.tracker, self.run_dir, self.record = tracker, run_dir, record
        self.started = time.time()
        self.service = SERVICES[tracker]()
        self.state_file = run_dir / "trackers" / f"{tracker}.json"
        self.sent: dict[str, int] = {}
        """{kind: last step that the tracker has}"""
        self.waiting: list[Point] = []
        self.opened = False
        self.reported: set[str] = set()
        self.next_try, self.pause = 0.0, PAUSE
        self.ended = threading.Event()
        self.busy_since: float | None = None

    def run(self) -> int:
        """Work until the run has ended. Returns the exit status."""
        threading.Thread(target=self._wait_for_end, daemon=True).start()
        threading.Thread(target=self._report_stalls, daemon=True).start()
        self._lock()
        earlier = read(self.state_file).get("sent")
        self.sent = {str(kind): int(step) for kind, step in earlier.items()} if isinstance(earlier, dict) else {}
        curves = Curves(self.run_dir / "metrics.jsonl", dict(self.sent))
        if not self._guarded(self._open) and "missing" in self.reported:
            return REPORTED
        while True:
            over = self.ended.wait(POLL)
            self.waiting += curves.new()
            self._send(last=over)
            if over:
                break
        state = str(read(self.record).get("state"))
        if not self.opened:
            return REPORTED
        step = max(self.sent.values(), default=0)
        done = self._guarded(lambda: self.service.close(state, step, scores_of(self.run_dir, self.started)))
        self._save()
        return 0 if done and not self.waiting else REPORTED

    def _lock(self) -> None:
        """Wait for the last flush of an earlier start's process; it is bounded."""
        import fcntl

        self.state_file.parent.mkdir(exist_ok=True)
        self.lock = os.open(self.state_file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass

    def _open(self) -> None:
        settings = settings_of(self.run_dir)
        name = str(read(self.run_dir / "plan.json").get("name"))
        self.service.open(About(str(settings.get("run_id")), name, self.run_dir, settings))
        self.opened = True
        url = self.service.url
        if url and url.startswith(("http://", "https://")):
            self._event("tracker", tracker=self.tracker, url=on_one_line(without_secrets(url, os.environ)))

    def _send(self, *, last: bool) -> None:
        """Hand on what waits, unless a failed try was a moment ago."""
        if time.monotonic() < self.next_try and not last:
            return
        if not self.opened and not self._guarded(self._open):
            return
        while self.waiting:
            some = self.waiting[:MOST_AT_ONCE]
            if not self._guarded(lambda some=some: self.service.log(some)):  # type: ignore[misc]
                return
            del self.waiting[: len(some)]
            for point in some:
                self.sent[point.kind] = point.step
            self._save()

    def _guarded(self, call: Callable[[], None]) -> bool:
        """Call the tracker; whether it worked. What it raises is reported once and tried again later."""
        self.busy_since = time.monotonic()
        try:
            call()
        except ImportError as error:
            self._report("missing", f"{error}; install it: pip install 'zlaunch[{self.tracker}]' for {sys.executable}")
        except BaseException as error:  # some packages raise SystemExit
            print(without_secrets(traceback.format_exc(), os.environ), file=sys.stderr)
            self._report("failed", f"{type(error).__name__}: {error}")
        else:
            if "failed" in self.reported:
                self.reported.discard("failed")
                self._event("note", text=f"{self.tracker} works again")
            self.pause = PAUSE
            return True
        finally:
            self.busy_since = None
        self.next_try = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        return False

    def _report(self, kind: str, reason: str) -> None:
        if kind not in self.reported:
            self.reported.add(kind)
            said = on_one_line(without_secrets(reason, os.environ))[:500]
            self._event("warning", text=f"{self.tracker}: {said}; the run goes on without it")

    def _event(self, name: str, **fields: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": name, "node": 0, **fields}, ensure_ascii=False)
        print(line, flush=True)
        try:
            handle = os.open(self.run_dir / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, (line + "\n").encode("utf-8", "replace"))
            finally:
                os.close(handle)
        except OSError:
            pass  # a full disk; the log has it

    def _save(self) -> None:
        temporary = self.state_file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps({"sent": self.sent, "url": self.service.url}), encoding="utf-8")
            temporary.replace(self.state_file)
        except OSError:
            pass  # then a resumed run sends some points twice

    # threads

    def _wait_for_end(self) -> None:
        """Wait for the end of standard input, then bound what is left to do."""
        while os.read(0, 4096):
            pass
        state = str(read(self.record).get("state"))
        self.ended.set()
        seconds = LAST_SECONDS.get(state, LAST_SECONDS_STOPPED)
        time.sleep(seconds)
        self._report("late", f"it did not end within {seconds:g} s after the run; what it had not sent is lost")
        os._exit(REPORTED)

    def _report_stalls(self) -> None:
        while True:
            time.sleep(1.0)
            since = self.busy_since
            if since is not None and time.monotonic() - since > STALLED:
                self._report("stalled", f"no answer for {STALLED:g} s")
