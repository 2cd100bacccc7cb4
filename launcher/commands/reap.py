"""`zlaunch reap`: kill the processes that dead runs left on hosts, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import click

from launcher.backends.ssh.host_request import fleet_of, requested_hosts
from launcher.commands.ssh import host_flags, some_host_options
from launcher.errors import HostsError
from launcher.job.load import convert


@click.command()
@some_host_options(
    "ssh.hosts", "ssh.hostfile", "ssh.include", "ssh.exclude", "ssh.python", "ssh.ssh_config", "ssh.connect_timeout"
)
@click.option("--dry-run", is_flag=True, help="List the processes only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per host and line.")
@click.pass_context
def reap(ctx: click.Context, /, dry_run: bool, as_json: bool, **_flags: Any) -> int:
    """List and kill the processes of runs whose agent is gone.

    A process is killed only if all of this holds: it is yours, its environment names a run of zlaunch, and neither the
    agent nor the warden of that run is alive. Alive means the same pid, start time and boot as in the run's record.
    """
    flags = {key.partition(".")[2]: value for key, value in host_flags(ctx).items() if value is not None}
    ssh = convert({"ssh": flags}, where="the command line").ssh
    fleet = fleet_of(requested_hosts(ssh).names, ssh)
    failures: dict[str, str] = {}
    try:
        _, closed = fleet.for_each_host(lambda _, session: session.open())
        reached = [rank for rank in range(len(fleet)) if rank not in closed]
        answers, refused = fleet.for_each_host(
            lambda _, session: session.call("leftovers", kill=not dry_run, dead_only=True), reached
        )
        for rank, answer in sorted(answers.items()):
            name = fleet.sessions[rank].name
            left = [] if dry_run else [item["pid"] for item in answer["left"]]
            print_host(name, answer["found"], left, dry_run=dry_run, as_json=as_json)
            if left:
                failures[name] = f"cannot kill: {', '.join(map(str, left))}"
        for rank, error in {**closed, **refused}.items():
            name = fleet.sessions[rank].name
            failures[name] = str(error)
            if as_json:
                click.echo(json.dumps({"host": name, "error": str(error)}))
    finally:
        fleet.close()
    if failures:
        raise HostsError("not all hosts were reaped", failures)
    return 0


def print_host(host: str, found: list[dict[str, Any]], left: list[int], *, dry_run: bool, as_json: bool) -> None:
    """Print the processes found on a host, and whether they were killed; `left` are the pids that were not."""
    rows = [{"pid": item["pid"], "run": item["run_id"], "command": item["command"]} for item in found]
    if as_json:
        ended = [] if dry_run else [item["pid"] for item in rows if item["pid"] not in left]
        click.echo(json.dumps({"host": host, "found": rows, "ended": ended}))
        return
    for item in rows:
        action = "found" if dry_run or item["pid"] in left else "killed"
        click.echo(f"{host}: {action} {item['pid']} of {item['run']}: {item['command']}")
    if not rows:
        click.echo(f"{host}: no processes left over")
