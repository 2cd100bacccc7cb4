"""The hosts and slots that a job requests, before any host is asked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.backends import container_choice
from launcher.errors import HostfileError
from launcher.job.inputs import inputs
from launcher.job.spec import JobSpec, SshSpec
from launcher.machine import facts, measured_networks
from launcher.machine.forwarded import forwarded
from launcher.plan.types import Target
from launcher.remote import address, hostfile
from launcher.remote.connect import Options
from launcher.remote.fleet import Fleet

MANY_SLOTS = 4096
"""Placeholder for the slots of a host whose GPUs are not counted yet."""


@dataclass(frozen=True)
class HostRequest:
    """The hosts of a job: name -> slots, None where the host's GPUs decide."""

    pool: dict[str, int | None]
    include: str
    exclude: str
    left_out: frozenset[str] = frozenset()
    """Hosts that an elastic run goes on without."""

    def without(self, hosts: Iterable[str]) -> HostRequest:
        return replace(self, left_out=self.left_out | set(hosts))

    @property
    def names(self) -> list[str]:
        """Hosts that have a slot in the run. The launcher does not even connect to the others."""
        pool = {name: MANY_SLOTS if slots is None else slots for name, slots in self.pool.items()}
        return list(self._select(pool))

    def slots(self, gpus: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the slots to use per host. `gpus` counts the slots of hosts for which the job gives no number."""
        return self._select({name: gpus.get(name, 0) if slots is None else slots for name, slots in self.pool.items()})

    def _select(self, pool: Mapping[str, int]) -> dict[str, list[int]]:
        selected = hostfile.select(pool, self.include, self.exclude).items()
        return {name: slots for name, slots in selected if slots and name not in self.left_out}


def requested_hosts(ssh: SshSpec) -> HostRequest:
    """Return the hosts that the job names. Raises HostfileError."""
    if ssh.hosts and ssh.hostfile:
        raise HostfileError("both hosts and a hostfile are given", hint="give one of --hosts and --hostfile")
    file = ssh.hostfile or _file_in_place_of_hosts(ssh.hosts)
    if file:
        pool: dict[str, int | None] = dict(hostfile.load(Path(file).expanduser()))
        for name in pool:
            address.parse_address(name, where=file)
    elif ssh.hosts:
        pool = dict.fromkeys(hostfile.parse_hosts(ssh.hosts), ssh.slots)
    else:
        raise HostfileError("no hosts are given", hint="use --hosts node1,node2 or --hostfile FILE")
    request = HostRequest(pool, ssh.include or "", ssh.exclude or "")
    if not request.names:
        raise HostfileError("no host has a slot left", hint="look at --include, --exclude and slots= of the hostfile")
    return request


CHECK = "--check asks them"
UNASKED_PORTS = 29500, 29501
"""Ports in a rendering for hosts that were not asked."""


def unasked_target(job: JobSpec) -> Target:
    """Return what planning needs from the job alone, for a dry run that contacts no host.

    Raises UsageError if the job leaves open what only the hosts know.
    """
    request = requested_hosts(job.ssh)
    container_choice.runtime_of(job, "ssh")  # refuse an image that no host could run
    open_hosts = [name for name, slots in request.pool.items() if slots is None and name in set(request.names)]
    if open_hosts and job.device != "cpu":
        raise HostfileError(
            f"a dry run asks no host, and nothing says how many GPUs {open_hosts[0]} has",
            hint="give --slots, or slots= in the hostfile; --dry-run --check asks the hosts",
        )
    slots = request.slots(dict.fromkeys(open_hosts, 1))
    first = next(iter(slots))
    notes = [f"no host was asked: what they have is not checked, and the ports are chosen at the start ({CHECK})"]
    if len(slots) > 1 and not job.ssh.master_addr:
        notes.append(f"the address of {first} that the others reach is chosen at the start, or given by --master-addr")
    return Target(
        backend="ssh",
        device="cpu" if job.device == "cpu" else "cuda",
        hosts=tuple((name, len(used)) for name, used in slots.items()),
        python=job.ssh.python,
        master_addr=job.ssh.master_addr or (address.parse_address(first).host if len(slots) > 1 else "127.0.0.1"),
        master_port=UNASKED_PORTS[0],
        control_port=UNASKED_PORTS[1],
        token=facts.new_token(),
        network=measured_networks.known(list(slots)),
        paths=inputs(job)[1],
        notes=tuple(notes),
        forwarded=forwarded(os.environ),
    )


def _file_in_place_of_hosts(hosts: str | tuple[str, ...] | None) -> str | None:
    """`hosts: hosts.txt` means the file. A host name has no slash and is no file here."""
    if not isinstance(hosts, str) or "," in hosts:
        return None
    return hosts if "/" in hosts or hosts.endswith(".txt") or Path(hosts).is_file() else None


def connect_options(ssh: SshSpec) -> Options:
    return Options(ssh.ssh_config, ssh.accept_new_host_keys, ssh.connect_timeout, ssh.setup)


def fleet_of(names: Sequence[str], ssh: SshSpec) -> Fleet:
    """Return sessions to hosts, not open yet, with the job's options."""
    return Fleet(names, connect_options(ssh), ssh.python)
