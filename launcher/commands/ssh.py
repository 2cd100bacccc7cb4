"""`zlaunch ssh`: train on a list of hosts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import click
import msgspec

from launcher.backends import backend_of, target_of
from launcher.backends.ssh.host_request import unasked_target
from launcher.commands import ignored
from launcher.commands.help_groups import LaunchCommand
from launcher.commands.options import (
    Flag,
    add_flags,
    compose,
    job_options,
    launch_options,
    load_job,
    run_options,
    start_run_or_sweep,
    sweep_option,
    switch,
    take_flags,
)  # fmt: skip
from launcher.errors import UsageError
from launcher.job.spec import Job
from launcher.lifecycle import checks
from launcher.lifecycle.attach import launch
from launcher.lifecycle.sweep import IsCancelled
from launcher.rundir.directory import RunDir

HOST_FLAGS = (
    Flag("--hosts", "ssh.hosts", "Hosts in the order of their node ranks.", "Host", metavar="A,N[1-4],USER@C:PORT"),
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


def some_host_options(*keys: str) -> Callable[[Any], Any]:
    """The options about hosts with the flags of these keys only."""
    accept = switch("--accept-new-host-keys", "Host", "Add unknown host keys to known_hosts instead of refusing them.")
    return compose([add_flags([flag for flag in HOST_FLAGS if flag.key in keys]), accept])


host_options = some_host_options(*(flag.key for flag in HOST_FLAGS))


def host_flags(ctx: click.Context) -> dict[str, Any]:
    """The values of host_options on the command line, by key of the job."""
    return take_flags(HOST_FLAGS, ctx) | {"ssh.accept_new_host_keys": ctx.params["accept_new_host_keys"] or None}


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
@switch("--check", "Output", "With --dry-run: ask the hosts, as a start does.")
@click.pass_context
def ssh(ctx: click.Context, /, **_: Any) -> int:
    """Train on a list of hosts over SSH.

    JOB is a job file. The default is job.yaml in the working directory. Without one, flags about model, data and
    training make a job of their own; without such flags the demo of zlaunch runs. To run a program of your own
    instead, put it after `--`; the files of the working directory that it names are sent to the hosts.

    --dry-run renders the run from the hostfile alone.

    Ctrl-C and a closed terminal stop the run after a checkpoint. It continues if this command is killed or the laptop
    sleeps; `zlaunch status` shows it again. With --detach it needs no terminal.
    """
    flags = host_flags(ctx)

    def load(values: dict[str, Any]) -> Job:
        loaded = hosts_of_flags(load_job(ctx, {**flags, **values}), flags)
        ignored.refuse_ignored(loaded.spec, ignored.SSH, flags, ctx.params["overrides"])
        return loaded

    if ctx.params["check"] and not ctx.params["dry_run"]:
        raise UsageError("--check is for --dry-run", hint="a start always asks the hosts", code="ZL-OPT-01")

    def start(loaded: Job, run: RunDir | None = None, is_cancelled: IsCancelled | None = None) -> int:
        checks.check_inputs(loaded.spec, "ssh")  # before any host is contacted
        unasked = ctx.params["dry_run"] and not ctx.params["check"]
        target = unasked_target(loaded.spec) if unasked else target_of("ssh", loaded.spec)
        backend = backend_of("ssh")
        return launch(loaded, target, backend, run=run, is_cancelled=is_cancelled, **launch_options(ctx))

    return start_run_or_sweep(ctx, load, start, backend="ssh")
