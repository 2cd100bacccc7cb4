"""`zlaunch ssh` with programs that need no torch: start, watch from elsewhere, stop, pull."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.rundir.directory import RunDir
from tests.beds.interleavings import COUNT, PROGRAM, check_answers, together
from tests.ssh.conftest import Zl

pytestmark = [pytest.mark.ssh, pytest.mark.timeout(180)]


def test_a_program_runs_on_every_host_with_its_rank_and_its_logs_are_copied_here(zl: Zl) -> None:
    output = zl.ssh(program='echo "rank $RANK of $WORLD_SIZE on $(hostname), master $MASTER_ADDR"')
    assert "SUCCEEDED" in output
    logs = zl.runs / zl.run_id / "logs"
    lines = [(logs / f"node-{r}/rank-{r}.log").read_text().strip() for r in range(4)]
    assert lines == [f"rank {r} of 4 on node{r + 1}, master {zl.lab.address('node1')}" for r in range(4)]
    assert zl.left(zl.run_id) == []


def test_a_detached_run_is_watched_and_cancelled_by_later_commands_whatever_its_name(zl: Zl) -> None:
    ascii_only = "export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"  # what a host of another locale is like
    run = zl.detached("echo started on $(hostname); sleep 60", "--name", "情感分类 ＡＢ/عربي",
                      "--set", f"ssh.setup=['{ascii_only}']")  # fmt: skip
    assert run.startswith("情感分类-ＡＢ-عربي-2")
    zl.all_running(run)
    assert "zlaunch cancel" in zl("rm", run, "--yes", code=2)
    assert zl.status("情感")["state"] == "RUNNING"
    assert "started on node3" in zl("logs", run, "--rank", "2")
    assert "CANCELLED" in zl("cancel", run)
    assert "logs/node-1/rank-1.log" in zl("pull", run) or (zl.runs / run / "logs/node-1/rank-1.log").exists()
    assert zl.left(run) == []
    assert zl.status(run)["state"] == "CANCELLED"
    assert "already CANCELLED" in zl("cancel", run)
    places = json.loads(zl("rm", "情感", "--dry-run", "--json").splitlines()[-1])["places"]
    assert [place["host"] for place in places] == ["this machine", *zl.lab.hosts]
    assert all(place["bytes"] > 10_000 for place in places)
    zl.lab.run("node3", ["mv", places[3]["path"], "/tmp/aside"])
    zl.lab.run("node3", ["ln", "-s", "/tmp/aside", places[3]["path"]])
    assert "is a symbolic link" in zl("rm", run, "--yes", code=1)
    zl.lab.run("node3", ["rm", places[3]["path"]])  # what is gone already is no error
    assert "freed" in zl("rm", run, "--yes")
    for place in places[1:]:
        assert zl.lab.run(place["host"], ["ls", "-A", str(Path(place["path"]).parent)]).stdout.count(run) == 0
    assert zl.lab.run("node3", ["rm", "-r", "/tmp/aside"]).stdout == ""
    assert not (zl.runs / run).exists()


def test_logs_can_be_followed_to_the_end_and_no_line_comes_twice(zl: Zl) -> None:
    run = zl.detached("for i in 1 2 3 4 5; do echo line $i; sleep 0.4; done", hosts=["node1", "node2"])
    lines = [line for line in zl("logs", "-f", run).splitlines() if "line " in line]
    assert sorted(lines) == sorted(f"[{rank}] line {i}" for rank in (0, 1) for i in range(1, 6))
    assert [line for line in zl("logs", run).splitlines() if "line " in line and line.startswith("[0]")] == [
        f"[0] line {i}" for i in range(1, 6)
    ]


def test_events_of_all_hosts_are_in_one_file_once(zl: Zl) -> None:
    zl.ssh(program="true")
    zl.status()
    events = [json.loads(line) for line in (zl.runs / zl.run_id / "events.jsonl").read_text().splitlines()]
    ended = [event["node"] for event in events if event["event"] == "end"]
    assert sorted(ended) == [0, 1, 2, 3]


def test_a_secret_reaches_the_ranks_and_is_in_no_file_and_no_command_line(zl: Zl) -> None:
    secret = "s3cr3t-token-of-the-test"
    zl.environ["MY_TOKEN"] = secret
    (zl.home / "job.yaml").write_text("secrets: [MY_TOKEN]\n")
    program = 'echo "length ${#MY_TOKEN}"; sleep 60'
    run = json.loads(zl("ssh", "job.yaml", *zl.ssh_words("--detach", "--json", program=program)[1:]).splitlines()[-1])[
        "run"
    ]
    zl.all_running(run)
    assert f"length {len(secret)}" in zl("logs", run)
    for host in zl.lab.hosts:
        files = "cat $(find /root/zlaunch -type f) | LC_ALL=C tr -cd '[:print:]'"  # compiled modules are no text
        found = zl.lab.run(host, ["sh", "-c", f"cat /proc/[0-9]*/cmdline | tr '\\0' ' '; {files}"])
        assert run in found.stdout
        assert secret not in found.stdout
    zl("cancel", run)
    assert all(secret not in file.read_text(errors="replace") for file in zl.runs.rglob("*") if file.is_file())


def test_on_a_shared_filesystem_one_copy_serves_all_hosts(zl: Zl) -> None:
    workdir = zl.lab.shared / "work dir's"
    zl.ssh("--workdir", str(workdir), program='echo rank $RANK > "out-$RANK"')
    places = json.loads((zl.runs / zl.run_id / "run.json").read_text())["extra"]["places"]
    assert [place["leader"] for place in places] == [0, 0, 0, 0]
    assert sorted(path.name for path in (workdir / "runs" / zl.run_id).glob("out-*")) == [f"out-{r}" for r in range(4)]
    assert list((workdir / ".marks").iterdir()) == []
    events = [json.loads(line) for line in (zl.runs / zl.run_id / "events.jsonl").read_text().splitlines()]
    assert sorted(event["node"] for event in events if event["event"] == "end") == [0, 1, 2, 3]


def test_hosts_of_a_hostfile_may_have_unequal_slots_and_be_excluded(zl: Zl) -> None:
    (zl.home / "hosts.txt").write_text("node1 slots=1\nnode2 slots=2\nnode3 slots=4\n")
    words = ["--hostfile", "hosts.txt", "--exclude", "node3:1,2,3"]
    zl.ssh(*words, hosts=[], program='echo "$RANK $LOCAL_RANK/$LOCAL_WORLD_SIZE $(hostname)"')
    logs = sorted((zl.runs / zl.run_id / "logs").glob("node-*/rank-*.log"))
    assert [log.read_text().strip() for log in logs] == ["0 0/1 node1", "1 0/2 node2", "2 1/2 node2", "3 0/1 node3"]


def test_an_absent_hostfile_starts_nothing(zl: Zl) -> None:
    output = zl.ssh("--hostfile", "nowhere.txt", hosts=[], program="true", code=2)
    assert "no such hostfile" in output
    assert not zl.runs.exists()


def test_a_dry_run_starts_nothing_and_writes_the_files_of_a_submit(zl: Zl) -> None:
    zl.ssh("--dry-run", "--check", program="true")
    run = zl.runs / zl.run_id
    plan = json.loads((run / "plan.json").read_text())
    assert [node["host"] for node in plan["launch"]["nodes"]] == zl.lab.hosts
    assert plan["launch"]["master_addr"] == zl.lab.address("node1")
    assert (run / "node.sh").exists()
    assert zl.left(zl.run_id) == []
    for host in zl.lab.hosts:
        assert zl.lab.run(host, ["ls", f"/root/zlaunch/runs/{zl.run_id}"], check=False).returncode != 0


def test_pull_copies_the_adapter_and_the_result_here(zl: Zl) -> None:
    program = "mkdir -p adapter; echo {} > adapter/adapter_config.json; "
    program += "head -c 9000000 /dev/zero > adapter/a.safetensors; sleep 60"
    run = zl.detached(program, hosts=["node1", "node2"])
    zl.all_running(run, ["node1", "node2"])
    zl.wait(lambda: "a.safetensors" in zl("pull", run))
    assert (zl.runs / run / "adapter/adapter_config.json").read_text() == "{}\n"
    zl("cancel", run)
    zl("pull", run)
    assert (zl.runs / run / "adapter/a.safetensors").stat().st_size == 9_000_000


def test_names_with_odd_characters_travel_unharmed(zl: Zl) -> None:
    odd = "a b'c\"d$HOME;e`f`-ü中"
    zl.ssh("--name", odd, "--workdir", f"/tmp/{odd}/w", program="pwd", hosts=["node1", "node2"])
    assert (zl.runs / zl.run_id / "logs/node-1/rank-1.log").read_text().strip() == f"/tmp/{odd}/w/runs/{zl.run_id}"


def test_the_home_of_this_machine_is_left_alone(zl: Zl) -> None:
    before = set(Path.home().iterdir())
    zl.ssh(program="true", hosts=["node1"])
    assert {path for path in Path.home().iterdir() if path.name == "zlaunch"} <= before


def test_hosts_behind_a_jump_host_are_reached_through_it(zl: Zl) -> None:
    """ProxyJump of the user's ssh configuration, through a host of the run and through another one."""
    config, included = zl.home / "ssh_config", zl.home / "hosts.conf"
    text = zl.lab.ssh_config.read_text()
    for behind, jump in (("node2", "node1"), ("node3", "node4")):
        text = text.replace(f"Host {behind}\n", f"Host {behind}\n  ProxyJump {jump}\n")
        zl.lab.run(behind, ["ip", "route", "add", "blackhole", f"{zl.lab.network}.1/32"])
    config.write_text(f"Include {zl.home}/*.conf\n")  # paramiko does not know Include
    included.write_text(text)
    hosts = ["node1", "node2", "node3"]
    try:
        assert "node2" in zl.ssh("--connect-timeout", "2", program="true", hosts=hosts, code=1)
        words = ["--ssh-config", str(config), "--connect-timeout", "5"]
        zl.ssh(*words, program="echo rank $RANK on $(hostname)", hosts=hosts)
        output = zl("logs", zl.run_id)
        assert all(f"rank {rank} on node{rank + 1}" in output for rank in range(3)), output
        run = zl.detached("sleep 300", *words, hosts=hosts)
        zl.all_running(run, hosts)
        zl("cancel", run)
        assert zl.left(run) == []
    finally:
        for behind in ("node2", "node3"):
            zl.lab.run(behind, ["ip", "route", "del", "blackhole", f"{zl.lab.network}.1/32"])


def test_a_program_file_of_the_working_directory_is_sent_along(zl: Zl) -> None:
    (zl.home / "my prog.py").write_text("import sys; print('words', *sys.argv[1:], open(sys.argv[2]).read())")
    (zl.home / "table.csv").write_text("1,2,3")
    words = [*zl.target(["node1", "node2"]), "--device", "cpu", "--", "python", "my prog.py", "--table", "table.csv"]
    words[words.index("python")] = zl.lab.python
    zl("ssh", *words)
    lines = [line for line in zl("logs", zl.run_id).splitlines() if "words" in line]
    assert len(lines) == 2
    assert all(line.endswith("table.csv 1,2,3") for line in lines)


def test_a_run_resumed_on_another_first_host_gets_its_newest_checkpoint(zl: Zl) -> None:
    save = "mkdir -p checkpoints/step-20 checkpoints/step-30; head -c 9000000 /dev/zero > checkpoints/step-20/weights"
    first = f"if [ ! -e checkpoints ] && [ $RANK = 0 ]; then {save}; touch checkpoints/step-20/COMPLETE; exit 1; fi"
    program = f"{first}; [ $RANK = 1 ] || wc -c checkpoints/step-20/*"
    zl.ssh(program=program, hosts=["node1", "node2"], code=1)
    run = zl.run_id
    zl("resume", run, "--set", "ssh.hosts=node3,node2")  # node1 has left the run, but it can be asked
    assert "9000000 checkpoints/step-20/weights" in zl("logs", run)
    found = zl.lab.run("node3", ["sh", "-c", f"ls -A /root/zlaunch/runs/{run}/checkpoints/*"]).stdout.split()
    assert sorted(found) == ["COMPLETE", "weights"]
    zl.lab.cut("node3")  # now only this machine has the checkpoint, because it passed it on
    output = zl("resume", run, "--set", "ssh.hosts=node4", "--set", "ssh.connect_timeout=2")
    assert "cannot reach node3" in output
    zl.lab.run("node4", ["ls", f"/root/zlaunch/runs/{run}/checkpoints/step-20/COMPLETE"])


def test_a_sweep_runs_its_points_in_turn_and_resume_starts_only_failed_ones(zl: Zl) -> None:
    again = zl.lab.shared / "let-it-pass"
    again.unlink(missing_ok=True)
    program = f'case "$POINT" in two) [ -e {again} ] || exit 3;; esac; echo "$POINT on $(hostname)"'
    zl.ssh("--sweep", "env.POINT=one,two,three", program=program, hosts=["node1", "node2"], code=1)
    (name,) = (path.name for path in (zl.runs / "sweeps").iterdir())

    def rows() -> list[tuple[str, str]]:
        found = [json.loads(line) for line in zl("report", name, "--json").splitlines()]
        return [(row["env.POINT"], row["state"]) for row in found]

    assert rows() == [("one", "SUCCEEDED"), ("two", "FAILED"), ("three", "SUCCEEDED")]
    before = {path.name for path in zl.runs.glob("run-*")}
    again.touch()
    zl("resume", name)
    assert rows() == [("one", "SUCCEEDED"), ("two", "SUCCEEDED"), ("three", "SUCCEEDED")]
    assert {path.name for path in zl.runs.glob("run-*")} == before
    again.unlink()


@pytest.mark.parametrize("when", ["its first point runs", "its first point is being started"])
def test_a_cancelled_sweep_leaves_no_process_and_starts_no_further_point(zl: Zl, when: str) -> None:
    words = ["--sweep", "env.POINT=one,two,three"]
    launcher = zl.start(*zl.ssh_words(*words, program="sleep 300", hosts=["node1", "node2"]))
    zl.wait(lambda: list(zl.runs.glob("sweeps/*/sweep.json")))
    (file,) = zl.runs.glob("sweeps/*/sweep.json")
    names = [point["run"] for point in json.loads(file.read_text())["points"]]
    if when == "its first point runs":
        zl.all_running(names[0], ["node1", "node2"])
    points = json.loads(zl("cancel", file.parent.name, "--json").splitlines()[-1])["points"]
    assert [(point["was"], point["state"]) for point in points][1:] == [("not started", "CANCELLED")] * 2
    output, _ = launcher.communicate(timeout=60)
    assert (launcher.returncode, "point 2 of 3" in output) == (130, False), output
    states = [json.loads(line)["state"] for line in zl("report", file.parent.name, "--json").splitlines()]
    assert states[0] in ("CANCELLED", *(["FAILED"] if "started" in when else []))  # a start that was cut off
    assert states[1:] == ["CANCELLED"] * 2
    assert [zl.left(name) for name in names] == [[], [], []]


OPERATIONS = [
    ("resume", "--detach"), ("resume", "--detach"), ("cancel", "--now"), ("pull",), ("pull", "--checkpoints"),
    ("status",), ("list",),
]  # fmt: skip


@pytest.mark.timeout(120 + 90 * COUNT)
def test_whatever_the_order_of_commands_one_start_lives_and_the_record_is_true(zl: Zl) -> None:
    run = zl.detached(PROGRAM % 2, hosts=["node1"])
    zl("cancel", "--now", run)
    for seed in range(COUNT):
        answers = together(zl.start, run, seed, OPERATIONS)
        check_answers(answers)
        if zl.status(run)["state"] not in ("RUNNING", "PENDING"):
            assert zl.left(run) == [], (seed, answers)
        zl("cancel", "--now", run)
        assert zl.left(run) == [], (seed, answers)
        there = zl.lab.run("node1", ["sh", "-c", f"cd ~/zlaunch/runs/{run} && ls"]).stdout.split()
        assert "one" in there
        assert not {"TWO", "SWAPPED"} & {*there}, (seed, answers)
        RunDir(zl.runs / run).update_record(state="CANCELLED")


def test_notices_and_trackers_work_on_the_hosts_after_the_launcher_has_left(zl: Zl) -> None:
    secret = "s3cr3t-address-of-the-test"
    zl.environ["HOOK"] = f"http://127.0.0.1:9/{secret}"  # nothing listens there
    command = 'cat > notice.json; echo "<$HOOK>" > hook'
    words = ["--set", "notify.url=$HOOK", "--set", f"notify.command={command}"]
    run = zl.detached("sleep 1", *words, hosts=["node1", "node2"])
    place = f"/root/zlaunch/runs/{run}"
    read = ["sh", "-c", f"cat {place}/notice.json {place}/hook {place}/events.jsonl 2>&1; true"]
    zl.wait(lambda: zl.lab.run("node1", read).stdout.count('"event": "notice"') == 2, 60)
    text = zl.lab.run("node1", read).stdout
    assert '"kind": "end"' in text
    assert "no connection: [Errno 111] Connection refused" in text
    for host in ("node1", "node2"):
        files = "cat $(find /root/zlaunch -type f) | LC_ALL=C tr -cd '[:print:]'"
        found = zl.lab.run(host, ["sh", "-c", f"cat /proc/[0-9]*/cmdline | tr '\\0' ' '; {files}"])
        assert secret not in found.stdout
    assert "No such file" in zl.lab.run("node2", ["sh", "-c", f"ls {place}/notice.json 2>&1; true"]).stdout
    zl("status", run)
    assert all(secret not in file.read_text(errors="replace") for file in zl.runs.rglob("*") if file.is_file())
