"""`zlaunch reap`: end what dead runs left on hosts, and nothing else."""

from __future__ import annotations

from typing import Any

import click

from launcher import hosts
from launcher.commands.ssh import host_flags, host_options
from launcher.errors import HostsError
from launcher.fleet import Fleet
from launcher.spec import convert


@click.command()
@host_options
@click.option("--dry-run", is_flag=True, help="Only list.")
def reap(dry_run: bool, **parameters: Any) -> int:
    """List and end processes of runs whose agent is gone.

    A process counts only if a run of zlaunch started it (its environment names the run), it is yours, and neither the
    agent nor the warden in that run's record lives: same pid, same start time, same boot.
    """
    flags = {key.partition(".")[2]: value for key, value in host_flags(parameters).items() if value is not None}
    ssh = convert({"ssh": flags}, where="the command line").ssh
    fleet = Fleet(hosts.wanted(ssh).names, hosts.options(ssh), ssh.python)
    failures: dict[str, str] = {}
    try:
        _, closed = fleet.each(lambda _, session: session.open())
        reached = [rank for rank in range(len(fleet)) if rank not in closed]
        answers, refused = fleet.each(
            lambda _, session: session.call("strays", kill=not dry_run, dead_only=True), reached
        )
        for rank, answer in sorted(answers.items()):
            name = fleet.sessions[rank].name
            for item in answer["found"]:
                word = "found" if dry_run else "ended"
                click.echo(f"{name}: {word} {item['pid']} of {item['run_id']}: {item['command']}")
            if not answer["found"]:
                click.echo(f"{name}: nothing left")
            if answer["left"] and not dry_run:
                failures[name] = f"cannot be ended: {', '.join(str(item['pid']) for item in answer['left'])}"
        failures.update({fleet.sessions[rank].name: str(error) for rank, error in {**closed, **refused}.items()})
    finally:
        fleet.close()
    if failures:
        raise HostsError("not reaped everywhere", failures)
    return 0
