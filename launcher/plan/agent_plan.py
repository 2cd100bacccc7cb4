"""The section `launch` of plan.json: all that the agent of a node reads."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.job.notify_address import variable_of
from launcher.job.spec import JobSpec
from launcher.plan.container import ContainerChoice
from launcher.plan.types import ContainerPlan, Launch, Node, Notify, Target

CONTAINER_PYTHON = "python3"
"""The interpreter of the training environment in an image: the first on its PATH."""
SOCKETS = {"NCCL_SOCKET_NTHREADS": "4", "NCCL_NSOCKS_PERTHREAD": "4"}
"""Of six settings the fastest between two hosts: 9.0 GiB/s for an all-reduce, where NCCL's default reached 2.3
(docs/nodes.md). NCCL reads them only where its transport is sockets."""


def launch_of(
    spec: JobSpec,
    target: Target,
    choice: ContainerChoice,
    container: ContainerPlan | None,
    *,
    run_id: str,
    stop_deadline: float,
    kill_after: float,
) -> Launch:
    return Launch(
        run_id=run_id,
        backend=target.backend,
        nodes=nodes_of(target.hosts),
        world_size=target.world_size,
        device=target.device,
        master_addr=target.master_addr,
        master_port=target.master_port,
        control_port=target.control_port,
        token=target.token,
        # Under pyxis the agent is inside as well.
        python=CONTAINER_PYTHON if choice.runtime == "pyxis" else target.python,
        argv=argv_of(spec.program, target.python if choice.runtime == "none" else CONTAINER_PYTHON),
        cwd=target.cwd if spec.program else None,
        env=env_of(spec, target, choice),
        secrets=spec.secret_names,
        defaults=defaults_of(target),
        cooperative=not spec.program,
        stop_deadline=stop_deadline,
        kill_after=kill_after,
        heartbeat_timeout=spec.heartbeat_timeout,
        max_restarts=spec.max_restarts,
        elastic=spec.elastic,
        container=container,
        trackers=() if spec.program else spec.train.trackers,
        notify=notify_of(spec),
    )


def env_of(spec: JobSpec, target: Target, choice: ContainerChoice) -> dict[str, str]:
    """The variables of all ranks. On hosts the GPUs differ: their agents get CUDA_VISIBLE_DEVICES one by one."""
    given = {name: value for name, value in spec.env.items() if name != "CUDA_VISIBLE_DEVICES" or not on_hosts(target)}
    forwarded = {name: value for name, (value, _) in target.forwarded.items()}
    return {**forwarded, **given, **choice.cache_variables}


def defaults_of(target: Target) -> dict[str, str]:
    """What the agent sets where nobody else has."""
    return SOCKETS if target.device == "cuda" and len(target.hosts) > 1 else {}


def on_hosts(target: Target) -> bool:
    return target.backend == "ssh" and target.device == "cuda"


def nodes_of(hosts: tuple[tuple[str, int], ...]) -> tuple[Node, ...]:
    """The rank table: hosts get their ranks in order, all ranks of one host together."""
    nodes: list[Node] = []
    for rank, (host, procs) in enumerate(hosts):
        first = nodes[-1].first_rank + nodes[-1].procs if nodes else 0
        nodes.append(Node(node_rank=rank, host=host, procs=procs, first_rank=first))
    return tuple(nodes)


def argv_of(program: tuple[str, ...], python: str) -> tuple[str, ...]:
    """The command of a rank. A Python file of the user runs unbuffered in the training environment's interpreter."""
    if not program:
        return (python, "-m", "train", "--config", "train.json")
    return (python, "-u", *program) if program[0].endswith(".py") else program


def notify_of(spec: JobSpec) -> Notify | None:
    """What the agent needs to send notices: no address, only the variable that holds it."""
    notify = spec.notify
    if not notify.url and not notify.command:
        return None
    return Notify(
        name=spec.name,
        url=variable_of(notify.url) if notify.url else None,
        sign=variable_of(notify.sign) if notify.sign else None,
        format=notify.format,
        command=notify.command,
        on=(notify.on,) if isinstance(notify.on, str) else notify.on,
    )


def reporting_lines(trackers: Sequence[str], notify: Notify | None) -> list[str]:
    """Trackers and notices as text, one line each."""
    found = [f"trackers: {', '.join(trackers)}"] if trackers else []
    if notify is not None:
        form = "" if notify.format == "auto" else f", as {notify.format}"
        places = [f"the address in ${notify.url}{form}"] * bool(notify.url)
        places += ["a command"] * bool(notify.command)
        found.append(f"notices: {', '.join(notify.on)}; to {' and '.join(places)}")
    return found
