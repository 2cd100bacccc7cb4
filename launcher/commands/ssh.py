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
from launcher.commands import ignored
from launcher.commands.help_groups import LaunchCommand, Option
from launcher.commands.options import Flag, add_flags, job_options, load_job, run_options, sweep_option, take_flags
from launcher.job.spec import Job
from launcher.lifecycle import checks, sweep_in_turn
from launcher.lifecycle.attach import launch
from launcher.lifecycle.sweep import IsCancelled
from launcher.rundir.directory import RunDir

HOST_FLAGS = (
    Flag("--hosts", "ssh.hosts", "Hosts in the order of their node ranks.", "Host", metavar="A,B,USER@C:PORT"),
    Flag("--hostfile", "ssh.hostfile", "Hosts and slots in DeepSpeed's format.", "Host", metavar="FILE"),
    Flag("--include", "ssh.include", "Use only these hosts and slots.", "Host", metavar="HOST:0,1@HOST"),
    Flag("--exclude", "ssh.exclude", "Leave out these hosts and slots.", "Host", metavar="HOST:0@HOST"),
    Flag("--slots", "ssh.slots", "Ranks per host without a hostfile (default: one per GPU; CPU: 1).", "Host", int),
    Flag("--workdir", "ssh.workdir", "Working directory on the hosts (default: ~/zlaunch).", "Host"),
    Flag("--python", "ssh.python", "Python of the training environment on the hosts.", "Host"),
    Flag("--ssh-config", "ssh.ssh_config", "SSH configuration instead of ~/.ssh/config.", "Host", metavar="FILE"),
    Flag("--connect-timeout", "ssh.connect_timeout", "Seconds to wait for a host (default: 10).", "Host", float),
    Flag("--master-addr", "ssh.master_addr", "Address of the first host, as the other hosts reach it.", "Host"),
)


def host_options(function: Any) -> Any:
    """Add every option about the hosts."""
    return some_host_options(*(flag.key for flag in HOST_FLAGS))(function)


def some_host_options(*keys: str) -> Callable[[Any], Any]:
    """Like host_options with the flags of these keys only."""

    def decorate(function: Any) -> Any:
        function = click.option(
            "--accept-new-host-keys", cls=Option, group="Host", is_flag=True,
            help="Add unknown host keys to known_hosts instead of refusing them.",
        )(function)  # fmt: skip
        return add_flags([flag for flag in HOST_FLAGS if flag.key in keys])(function)

    return decorate


def host_flags(parameters: dict[str, Any]) -> dict[str, Any]:
    """Take the values of host_options out of a command's parameters, as keys of the job."""
    flags = take_flags(HOST_FLAGS, parameters)
    if parameters.pop("accept_new_host_keys"):
        flags["ssh.accept_new_host_keys"] = True
    return flags


def hosts_of_flags(job: Job, flags: dict[str, Any]) -> Job:
    """Let --hosts replace the job's hostfile, and --hostfile its hosts."""
    for given, other in (("hosts", "hostfile"), ("hostfile", "hosts")):
        if flags[f"ssh.{given}"] is not None and flags[f"ssh.{other}"] is None:
            section = {key: value for key, value in job.tree["ssh"].items() if key != other}
            spec = msgspec.structs.replace(job.spec, ssh=msgspec.structs.replace(job.spec.ssh, **{other: None}))
            return dataclasses.replace(job, spec=spec, tree={**job.tree, "ssh": section})
    return job


@click.command(cls=LaunchCommand)
@job_options
@host_options
@sweep_option("one after another")
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

    JOB is a job file. The default is job.yaml in the working directory, or else the demo job of zlaunch. To run a
    program of your own instead, put it after `--`; the files of the working directory that it names are sent to the
    hosts.

    The run continues if this command is killed or the laptop is closed; `zlaunch status` shows it again.
    """
    flags = host_flags(parameters)

    def load(values: dict[str, Any]) -> Job:
        loaded = hosts_of_flags(load_job(ctx, job, overrides, smoke, parameters, {**flags, **values}), flags)
        ignored.refuse_ignored(loaded.spec, ignored.SSH, flags, overrides)
        return loaded

    def start(loaded: Job, run: RunDir | None = None, is_cancelled: IsCancelled | None = None) -> int:
        checks.check_inputs(loaded.spec, "ssh")  # before any host is contacted
        target = target_of("ssh", loaded.spec)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # closing the terminal must not end the run
        how = {"smoke": smoke, "dry_run": dry_run, "detach": detach, "as_json": as_json}
        return launch(loaded, target, backend_of("ssh"), run=run, is_cancelled=is_cancelled, **how)

    if sweeps:
        sweep_in_turn.refuse_detach(detach)
        return sweep_in_turn.run_sweep(sweeps, load, overrides, start, backend="ssh")
    return start(load({}))
