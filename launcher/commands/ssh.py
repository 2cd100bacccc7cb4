"""`zlaunch ssh`: train on a list of hosts."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from launcher.backends import backend_of, target_of
from launcher.commands.options import Idle, LaunchCommand, job_options, load_job, refuse_idle, run_options
from launcher.job.spec import Job
from launcher.lifecycle import checks, sweep
from launcher.lifecycle.attach import launch
from launcher.rundir.directory import RunDir

HOST_FLAGS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("--hosts", "ssh.hosts", {"metavar": "A,B,USER@C:PORT", "help": "Hosts in node order."}),
    ("--hostfile", "ssh.hostfile", {"metavar": "FILE", "help": "Hosts and slots in DeepSpeed's format."}),
    ("--include", "ssh.include", {"metavar": "HOST:0,1@HOST", "help": "Only these hosts and slots."}),
    ("--exclude", "ssh.exclude", {"metavar": "HOST:0@HOST", "help": "Not these hosts and slots."}),
    (
        "--slots",
        "ssh.slots",
        {"type": int, "help": "Ranks a host, where no hostfile says (default: its GPUs; CPU: 1)."},
    ),
    ("--workdir", "ssh.workdir", {"help": "Directory on the hosts (default ~/zlaunch)."}),
    ("--python", "ssh.python", {"help": "Interpreter of the training environment on the hosts."}),
    ("--ssh-config", "ssh.ssh_config", {"metavar": "FILE", "help": "Instead of ~/.ssh/config."}),
    ("--connect-timeout", "ssh.connect_timeout", {"type": float, "help": "Seconds to wait for a host (default 10)."}),
    ("--master-addr", "ssh.master_addr", {"help": "Address of the first host that the others reach."}),
)
"""(flag, key of the job, click's settings)."""


IDLE = (
    Idle(
        ("ssh.slots",),
        lambda job: job.ssh.hostfile is not None,
        "the hostfile says how many ranks each host gets",
        "say it there, or choose with --include and --exclude",
    ),
)


def host_options(function: Any) -> Any:
    """Which hosts, how to reach them, and what a run does there."""
    return reach_options(*(key for _, key, _ in HOST_FLAGS))(function)


def reach_options(*keys: str) -> Callable[[Any], Any]:
    """host_options with the flags of these keys only."""

    def decorate(function: Any) -> Any:
        function = click.option(
            "--accept-new-host-keys", is_flag=True, help="Write unknown host keys to known_hosts, do not refuse them."
        )(function)
        for flag, key, settings in reversed(HOST_FLAGS):
            if key in keys:
                function = click.option(flag, default=None, **settings)(function)
        return function

    return decorate


def host_flags(parameters: dict[str, Any]) -> dict[str, Any]:
    """Take host_options' values out of a command's parameters, as keys of the job."""
    flags = {key: parameters.pop(flag[2:].replace("-", "_"), None) for flag, key, _ in HOST_FLAGS}
    if parameters.pop("accept_new_host_keys"):
        flags["ssh.accept_new_host_keys"] = True
    return flags


def hosts_of_flags(job: Job, flags: dict[str, Any]) -> Job:
    """A flag wins over the job file, also over its other way of naming hosts."""
    for given, other in (("hosts", "hostfile"), ("hostfile", "hosts")):
        if flags[f"ssh.{given}"] is not None and flags[f"ssh.{other}"] is None:
            section = {key: value for key, value in job.tree["ssh"].items() if key != other}
            spec = msgspec.structs.replace(job.spec, ssh=msgspec.structs.replace(job.spec.ssh, **{other: None}))
            return dataclasses.replace(job, spec=spec, tree={**job.tree, "ssh": section})
    return job


@click.command(cls=LaunchCommand)
@job_options
@host_options
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B,C", help="One run for each combination, in turn.")
@run_options
@click.pass_context
def ssh(
    ctx: click.Context,
    /,
    job: Path | None,
    overrides: tuple[str, ...],
    smoke: bool,
    sweeps: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    as_json: bool,
    **parameters: Any,
) -> int:
    """Train on a list of hosts over SSH.

    JOB: a job file; without one, job.yaml of the working directory, else the demonstration that ships with zlaunch.
    After `--`, any program of your own runs instead; files of the working directory that it names are sent along.
    The run goes on when this command is killed or the laptop closed: see it again with `zlaunch status`.
    """
    flags = host_flags(parameters)

    def load(values: dict[str, Any]) -> Job:
        asked = hosts_of_flags(load_job(ctx, job, overrides, smoke, parameters, {**flags, **values}), flags)
        refuse_idle(asked.spec, IDLE, flags, overrides)
        return asked

    def start(asked: Job, run: RunDir | None = None, revoked: sweep.Revoked | None = None) -> int:
        checks.check_inputs(asked.spec, "ssh")  # before any host is asked
        target = target_of("ssh", asked.spec)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no wish to end the run
        how = {"smoke": smoke, "dry_run": dry_run, "detach": detach, "as_json": as_json}
        return launch(asked, target, backend_of("ssh"), run=run, revoked=revoked, **how)

    if sweeps:
        sweep.refuse_detach(detach)
        return sweep.one_after_another(sweeps, load, overrides, start, backend="ssh")
    return start(load({}))
