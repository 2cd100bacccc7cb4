"""Notices of a run under a real agent, to servers on loopback."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.node.agent.launch import DEFAULTS, Names
from launcher.node.companions import deliver, notice
from launcher.node.companions.notifier import Notifier
from launcher.node.files import read_text
from launcher.node.run_files import CANCELLED
from tests.beds.agent_bed import FOREVER, UNTIL_STOP, Run, bed, wait_for
from tests.beds.hook import SECRET, Hook, closed_port, self_signed, serving

ALL = ["end", "failure", "preemption", "hang"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    with bed(tmp_path) as maker:

        def make(program: str, address: str | None, *, notify: dict[str, Any] | None = None, **launch: Any) -> Run:
            told = {"name": "n", "url": "HOOK", "sign": None, "format": "auto", "command": None, "on": ALL}
            run = maker(program, **{"notify": {**told, **(notify or {})}, **launch})
            start(run, address)
            return run

        yield make


def start(run: Run, address: str | None) -> None:
    """Start the agents; the secrets come on standard input."""
    secrets = {"HF_TOKEN": "abc123"} | ({"HOOK": address} if address else {})
    for rank in range(len(run.dirs)):
        argv = [sys.executable, "code/node/agent", "--run-dir", ".", "--node-rank", str(rank), "--secrets-stdin"]
        process = subprocess.Popen(argv, cwd=run.dirs[rank], stdin=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(json.dumps(secrets).encode())
        process.stdin.close()
        run.agents[rank] = process


def sent(run: Run) -> list[Any]:
    return run.events("notice")


def assert_nothing_shows(run: Run) -> None:
    """Nothing of the address lies in a file of the run."""
    for file in run.path.rglob("*"):
        if file.is_file():
            assert SECRET.encode() not in file.read_bytes(), file


def shown_by_processes(run: Run) -> list[str]:
    """Command lines and environments with the address, of the agents and everything below."""
    from launcher.node import processes

    found = []
    for process in run.agents.values():
        for pid in [process.pid, *processes.descendants(process.pid)]:
            for name in ("cmdline", "environ"):
                try:
                    text = Path(f"/proc/{pid}/{name}").read_bytes()
                except OSError:
                    continue
                found += [f"{pid} {name}"] * (SECRET.encode() in text)
    return found


def test_the_end_is_reported_once_with_what_the_run_came_to(make: Callable[..., Run]) -> None:
    program = (
        """echo '{"step": 3, "loss": 1.5}' > metrics.jsonl; """
        """echo '{"event": "steps", "total_steps": 3}' >> events.jsonl; """
        """echo '{"event": "tracker", "url": "https://wandb.example/r/1"}' >> events.jsonl; """
        """echo '{"eval": {"after": {"accuracy": 0.75}}}' > result.json; sleep 1.5"""
    )
    with serving(Hook()) as hook:
        run = make(program, hook.address)
        wait_for(lambda: run.events("ranks_started"))
        assert shown_by_processes(run) == []
        assert run.wait() == [0]
    (said,) = hook.notices
    assert (said["kind"], said["state"], said["final"], said["run"]) == ("end", "SUCCEEDED", True, run.run_id)
    lines = said["text"].splitlines()
    assert lines[0].startswith(f"zlaunch: {run.run_id} succeeded on ")
    assert lines[1:] == ["step 3 of 3, loss 1.5", "scores: accuracy 0.75", "https://wandb.example/r/1"]
    assert [event["sent"] for event in sent(run)] == [True]
    assert_nothing_shows(run)
    assert run.left() == []


def test_the_ranks_get_the_secrets_but_not_the_address(make: Callable[..., Run]) -> None:
    with serving(Hook()) as hook:
        run = make('echo "token $HF_TOKEN address <$HOOK>"', hook.address)
        assert run.wait() == [0]
    assert "token abc123 address <>" in run.log()


def test_a_restart_and_the_failure_after_it_are_two_notices(make: Callable[..., Run]) -> None:
    with serving(Hook()) as hook:
        run = make("echo RuntimeError: a hiccup; exit 7", hook.address, max_restarts=1)
        assert run.wait() == [1]
    assert [(n["kind"], n["state"], n["final"]) for n in hook.notices] == [
        ("failure", "RUNNING", False),
        ("failure", "FAILED", True),
    ]
    assert "restarted (1 of 1)" in hook.notices[0]["text"]
    assert "a hiccup" in hook.notices[1]["text"]


@pytest.mark.parametrize(
    ("number", "cancelled", "kind"),
    [(signal.SIGTERM, False, "preemption"), (signal.SIGTERM, True, "end"), (signal.SIGINT, False, "end")],
    ids=["a scheduler", "zlaunch cancel on Slurm", "Ctrl-C"],
)
def test_who_stopped_a_run_decides_the_kind(make: Callable[..., Run], number: int, cancelled: bool, kind: str) -> None:
    with serving(Hook()) as hook:
        run = make(UNTIL_STOP, hook.address)
        wait_for(lambda: run.events("ranks_started"))
        if cancelled:
            (run.path / "control" / CANCELLED).touch()
        run.signal(0, number)
        assert run.wait() == [75]
    assert [(n["kind"], n["state"]) for n in hook.notices] == [(kind, "STOPPED")]


@pytest.mark.parametrize("victim", ["agent", "warden", "both"])
def test_a_killed_agent_is_reported_once(make: Callable[..., Run], victim: str) -> None:
    with serving(Hook()) as hook:
        run = make(FOREVER, hook.address, stop_deadline=0.5)
        wait_for(lambda: run.events("ranks_started"))
        record = run.record()
        for pid in {"agent": [record["pid"]], "warden": [record["warden"]["pid"]]}.get(
            victim, [record["warden"]["pid"], record["pid"]]
        ):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: hook.got)
        run.agents[0].wait(10)
        time.sleep(0.3)
    (said,) = hook.notices
    assert said["final"]
    assert (said["kind"], said["cause"]) == (("failure", "killed") if victim != "warden" else (said["kind"], None))


def test_a_hang_is_one_notice(make: Callable[..., Run], tmp_path: Path) -> None:
    sign = (
        "import os, json, time\n"
        "text = json.dumps({'count': 1, 'doing': 'step 4', 'limit': 0.5, 'io': False})\n"
        "os.pwrite(int(os.environ['ZLAUNCH_WATCH_FD']), text.encode().ljust(256), 0)\n"
        "time.sleep(60)\n"
    )
    file = tmp_path / "rank.py"
    file.write_text(sign)
    with serving(Hook()) as hook:
        run = make(f"exec {sys.executable} -S {file}", hook.address)
        assert run.wait(40) == [1]
    assert [(n["kind"], n["cause"], n["state"]) for n in hook.notices] == [("hang", "hang", "FAILED")]


def test_only_the_occurrences_that_the_job_names_are_sent(make: Callable[..., Run]) -> None:
    with serving(Hook()) as hook:
        run = make("exit 0", hook.address, notify={"on": ["failure"]})
        assert run.wait() == [0]
    assert (hook.got, sent(run)) == ([], [])


REFUSALS = {
    "status 500": (500, "HTTP 500"),
    "status 404": (404, "HTTP 404"),
    "dingtalk's error": ({"errcode": 310000, "errmsg": "keywords not in content"}, "keywords not in content"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_an_event_with_its_reason_and_without_the_address(make: Callable[..., Run], case: str) -> None:
    how, reason = REFUSALS[case]
    with serving(Hook(how)) as hook:
        run = make("exit 0", hook.address, notify={"format": "dingtalk" if isinstance(how, dict) else "json"})
        assert run.wait() == [0]
        assert run.record()["state"] == "SUCCEEDED"
        assert len(hook.got) == 1
    (event,) = sent(run)
    assert not event["sent"]
    assert reason in event["reason"]
    assert_nothing_shows(run)


def test_a_busy_server_is_asked_again_and_gets_the_notice(make: Callable[..., Run]) -> None:
    with serving(Hook([503, 200])) as hook:
        run = make("exit 0", hook.address)
        assert run.wait() == [0]
    assert [event["sent"] for event in sent(run)] == [True]
    assert len(hook.got) == 2


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(make: Callable[..., Run], status: int) -> None:
    with serving(Hook()) as other, serving(Hook(status, f"http://127.0.0.1:{other.server_port}/{SECRET}")) as hook:
        run = make("exit 0", hook.address)
        assert run.wait() == [0]
    assert other.got == []
    assert f"redirects to another address (HTTP {status})" in sent(run)[0]["reason"]
    assert_nothing_shows(run)


def test_a_certificate_that_nobody_vouches_for_is_refused(make: Callable[..., Run], tmp_path: Path) -> None:
    hook = Hook()
    hook.socket = self_signed(tmp_path).wrap_socket(hook.socket, server_side=True)
    with serving(hook):
        run = make("exit 0", hook.address.replace("http:", "https:"))
        assert run.wait() == [0]
    assert "CERTIFICATE_VERIFY_FAILED" in sent(run)[0]["reason"]
    assert hook.got == []
    assert_nothing_shows(run)


def test_nobody_listens(make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("exit 0", f"http://127.0.0.1:{closed_port()}/{SECRET}")
    assert run.wait() == [0]
    assert "refused" in sent(run)[0]["reason"]
    assert_nothing_shows(run)


def test_a_server_that_never_answers_costs_a_bounded_time_after_the_end(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(Hook("silent")) as hook:
        run = make("exit 0", hook.address)
        wait_for(lambda: run.events("end"))
        assert run.record()["state"] == "SUCCEEDED"  # a launcher sees the end at once
        assert sent(run) == []
        assert run.wait(30) == [0]
        assert len(hook.got) == 1
    assert "no answer within 10 s; it may have arrived" in sent(run)[0]["reason"]


def test_a_command_gets_the_notice_and_the_secrets_but_not_the_address(make: Callable[..., Run]) -> None:
    command = 'cat > "notice.json"; echo "$ZLAUNCH_NOTICE_KIND $HF_TOKEN <$HOOK> $ZLAUNCH_NOTICE" > told'
    with serving(Hook()) as hook:
        run = make("exit 0", hook.address, notify={"command": command})
        assert run.wait() == [0]
    assert json.loads((run.path / "notice.json").read_text())["state"] == "SUCCEEDED"
    assert (run.path / "told").read_text().startswith("end abc123 <> zlaunch: ")
    assert [event["to"] for event in sent(run)] == ["a web address", "the command"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [("echo no route >&2; exit 3", "exit status 3: no route"), (["/no/such/program"], "cannot start /no/such/program")],
)
def test_a_command_that_fails_is_an_event(make: Callable[..., Run], command: Any, reason: str) -> None:
    run = make("exit 0", None, notify={"url": None, "command": command})
    assert run.wait() == [0]
    assert reason in sent(run)[0]["reason"]


def test_two_nodes_send_one_notice(make: Callable[..., Run]) -> None:
    with serving(Hook()) as hook:
        run = make("exit 0", hook.address, nodes=[1, 1])
        assert run.wait() == [0, 0]
    assert len(hook.got) == 1


@pytest.mark.parametrize(
    ("answer", "sends"), [(ConnectionRefusedError(), 0), (TimeoutError(), 1), (OSError(113, "no route"), 1)]
)
def test_the_second_node_reports_the_loss_of_the_firsts_host_unless_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: OSError, sends: int
) -> None:
    names = Names(tmp_path, 1)
    names.make()
    failure = {"cause": "lost_host", "node_rank": 0, "host": "first", "message": "the agent of node 0 went away"}
    Path(names.record).write_text(json.dumps({"state": "FAILED", "failure": failure}))

    def probe(*_: object) -> None:
        raise answer

    monkeypatch.setattr("socket.create_connection", probe)
    notify = {"name": "n", "url": None, "sign": None, "format": "auto", "command": "cat >> notices", "on": ALL}
    launch = {**DEFAULTS, "run_id": "r", "control_port": 1, "notify": notify}
    Notifier(launch, names, 1, {}).end()
    said = [json.loads(line) for line in read_text(tmp_path / "notices").splitlines()]
    assert [(one["kind"], one["cause"], one["host"]) for one in said] == [("failure", "lost_host", "first")] * sends


# ------------------------------------------------------------------------------------------------- forms

SAID = {"text": 'zlaunch: r failed <!channel> & <at user_id="all">', "kind": "failure", "run": "r"}


@pytest.mark.parametrize(
    ("address", "form"),
    [
        ("https://hooks.slack.com/services/T0/B0/x", "slack"),
        ("https://HOOKS.slack.com:443/services/T0", "slack"),
        ("https://oapi.dingtalk.com/robot/send?access_token=x", "dingtalk"),
        ("https://open.feishu.cn/open-apis/bot/v2/hook/x", "feishu"),
        ("https://open.larksuite.com/open-apis/bot/v2/hook/x", "feishu"),
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=x", "wecom"),
        ("https://hooks.slack.com.evil.example/x", "json"),
        ("https://example.com/?u=hooks.slack.com", "json"),
    ],
)
def test_a_service_is_known_by_its_host(address: str, form: str) -> None:
    assert notice.form_of(address) == form


def test_each_service_gets_the_form_that_it_takes() -> None:
    assert notice.body_of("slack", SAID, None, 0)[1] == {
        "text": 'zlaunch: r failed &lt;!channel&gt; &amp; &lt;at user_id="all"&gt;'
    }
    assert notice.body_of("dingtalk", SAID, None, 0)[1] == {"msgtype": "text", "text": {"content": SAID["text"]}}
    assert notice.body_of("feishu", SAID, None, 0)[1]["content"]["text"].endswith('& < at user_id="all">')
    assert notice.body_of("wecom", SAID, None, 0)[1]["msgtype"] == "text"
    assert notice.body_of("json", SAID, None, 0) == ({}, SAID)


def test_signatures_are_those_that_the_services_describe() -> None:
    added, _ = notice.body_of("dingtalk", SAID, "key", 1700000000.5)
    expected = hmac.new(b"key", b"1700000000500\nkey", hashlib.sha256).digest()
    assert added == {"timestamp": "1700000000500", "sign": base64.b64encode(expected).decode()}
    _, body = notice.body_of("feishu", SAID, "key", 1700000000.5)
    expected = hmac.new(b"1700000000\nkey", b"", hashlib.sha256).digest()
    assert (body["timestamp"], body["sign"]) == ("1700000000", base64.b64encode(expected).decode())


@pytest.mark.parametrize(
    ("form", "answer", "refused"),
    [
        ("dingtalk", {"errcode": 0, "errmsg": "ok"}, False),
        ("feishu", {"code": 19021, "msg": "sign match fail"}, True),
        ("feishu", {"StatusCode": 0}, False),
        ("wecom", {"errcode": 93000, "errmsg": "invalid webhook url"}, True),
        ("json", {"errcode": 1}, False),
        ("slack", "ok", False),
        ("wecom", ["odd"], False),
    ],
)
def test_an_answer_of_200_may_be_a_refusal(form: str, answer: Any, refused: bool) -> None:
    assert (notice.refusal_of(form, answer) is not None) is refused


def test_texts_are_cut_at_whole_characters() -> None:
    cut = notice.cut("训" * 1000)
    assert len(cut.encode()) <= notice.MOST_BYTES
    assert cut.endswith("训…")


def test_a_reason_shows_no_part_of_the_address() -> None:
    address = "https://h.example/services/T0AAAA/B0BBBB/zzzz?access_token=aa%2Fbbcc"
    text = f"bad {address} /services/T0AAAA/B0BBBB/zzzz T0AAAA aa/bbcc \x1b[31m\n twice " + "x" * 999
    shown = deliver.shown(text, address)
    assert not [part for part in ("T0AAAA", "zzzz", "aa/bbcc", "aa%2Fbbcc", "\x1b", "\n") if part in shown]
    assert len(shown) <= deliver.SHOWN


def test_work_that_never_ends_is_ended_with_what_it_started() -> None:
    begun = time.monotonic()
    assert deliver.in_time(lambda: subprocess.run(["sleep", "77.125"]) and None, 0.5) == "no answer within 0.5 s"
    assert time.monotonic() - begun < 5
    assert b"77.125" not in b"".join(
        file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if file.exists()
    )
