"""`zlaunch reap`: end what dead runs left on hosts, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher.backends.ssh import survey
from launcher.commands.ssh import host_flags, some_host_options
from launcher.errors import HostsError
from launcher.job.load import convert
from launcher.remote.fleet import Fleet


@click.command()
@some_host_options(
    "ssh.hosts", "ssh.hostfile", "ssh.include", "ssh.exclude", "ssh.python", "ssh.ssh_config", "ssh.connect_timeout"
)
@click.option("--dry-run", is_flag=True, help="Only list.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, a host each.")
def reap(dry_run: bool, as_json: bool, **parameters: Any) -> int:
    """List and end processes of runs whose agent is gone.

    A process counts only if a run of zlaunch started it (its environment names the run), it is yours, and neither the
    agent nor the warden in that run's record lives: same pid, same start time, same boot.
    """
    flags = {key.partition(".")[2]: value for key, value in host_flags(parameters).items() if value is not None}
    ssh = convert({"ssh": flags}, where="the command line").ssh
    fleet = Fleet(survey.wanted(ssh).names, survey.options(ssh), ssh.python)
    failures: dict[str, str] = {}
    try:
        _, closed = fleet.each(lambda _, session: session.open())
        reached = [rank for rank in range(len(fleet)) if rank not in closed]
        answers, refused = fleet.each(
            lambda _, session: session.call("leftovers", kill=not dry_run, dead_only=True), reached
        )
        for rank, answer in sorted(answers.items()):
            name = fleet.sessions[rank].name
            left = [] if dry_run else [item["pid"] for item in answer["left"]]
            say(name, answer["found"], left, dry_run=dry_run, as_json=as_json)
            if left:
                failures[name] = f"cannot be ended: {', '.join(map(str, left))}"
        for rank, error in {**closed, **refused}.items():
            name = fleet.sessions[rank].name
            failures[name] = str(error)
            if as_json:
                click.echo(json.dumps({"host": name, "error": str(error)}))
    finally:
        fleet.close()
    if failures:
        raise HostsError("not reaped everywhere", failures)
    return 0


def say(host: str, found: list[dict[str, Any]], left: list[int], *, dry_run: bool, as_json: bool) -> None:
    """What was found on a host, and whether it was ended; `left`: pids that could not be."""
    told = [{"pid": item["pid"], "run": item["run_id"], "command": item["command"]} for item in found]
    if as_json:
        ended = [] if dry_run else [item["pid"] for item in told if item["pid"] not in left]
        click.echo(json.dumps({"host": host, "found": told, "ended": ended}))
        return
    for item in told:
        word = "found" if dry_run or item["pid"] in left else "ended"
        click.echo(f"{host}: {word} {item['pid']} of {item['run']}: {item['command']}")
    if not told:
        click.echo(f"{host}: nothing left")
