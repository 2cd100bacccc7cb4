"""`zlaunch hostfile`: write hosts and slots in DeepSpeed's format."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.errors import UsageError


@click.command("hostfile")
@click.option("--from-slurm", is_flag=True, help="The nodes of the Slurm allocation that this runs in, with its GPUs.")
@click.option("--slots", type=click.IntRange(min=1), help="Slots of each host, instead of what the allocation has.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="File to write; without it, print.")
def hostfile(from_slurm: bool, slots: int | None, out: Path | None) -> int:
    """Write hosts and slots in DeepSpeed's format, for `zlaunch ssh --hostfile`, deepspeed and mpirun.

    Slots are the GPUs that a node has in this job, else its tasks. A node without a slot is left out.
    """
    from launcher.backends.own_allocation import slots_of_allocation

    if not from_slurm:
        raise UsageError("say where the hosts come from", hint="zlaunch hostfile --from-slurm", code="ZL-OPT-01")
    found = {host: slots or count for host, count in slots_of_allocation().items() if slots or count}
    text = "".join(f"{host} slots={count}\n" for host, count in found.items())
    if out is None:
        click.echo(text, nl=False)
        return 0
    out.write_text(text, encoding="utf-8")
    click.echo(f"{out}: {len(found)} hosts, {sum(found.values())} slots", err=True)
    return 0
