"""Start a run on surveyed hosts: send its files, start one agent per node, or undo a start that a host refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.backends.ssh import bundle
from launcher.backends.ssh.stop import stop_now
from launcher.backends.ssh.watch import HostWatch, NodePlace, NodeView
from launcher.errors import HostsError, TargetError
from launcher.job.inputs import Input, links_of
from launcher.machine.byte_progress import ByteProgress
from launcher.remote.session import Json, Session

if TYPE_CHECKING:
    from launcher.backends.ssh.survey import Survey
    from launcher.rundir.directory import RunDir

START_SECONDS = 60.0
"""For an agent to come up; a node.sh of the job's own may run lines of the user's before."""


def places_of(run: RunDir, survey: Survey) -> list[NodePlace]:
    """Return where each node's part of the run will lie."""
    return [
        NodePlace(
            host=name,
            run_dir=f"{survey.workdir(node)}/runs/{run.run_id}",
            workdir=survey.workdir(node),
            leader=survey.leaders[node],
            environ=survey.environment(node),
        )
        for node, name in enumerate(survey.names)
    ]


def forget_moved_nodes(watch: HostWatch, former: Sequence[NodePlace]) -> None:
    """Remove from the copy what came from hosts that are no longer the same node, and all earlier node records."""
    for node, place in enumerate(former):
        now = watch.places[node] if node < len(watch.places) else None
        if now is None or (now.host, now.run_dir) != (place.host, place.run_dir):
            watch.mirror.forget(node)
    for record in watch.run.nodes_dir.glob("node-*.json"):
        record.unlink()


def send_files(watch: HostWatch, inputs: Sequence[Input]) -> None:
    """Send the input files that are missing and the run's bundle, once per working directory. Raises HostsError."""
    packed = bundle.build(watch.run)
    leaders = sorted({place.leader for place in watch.places})
    size = len(packed) * len(leaders)
    progress = ByteProgress(f"sending the run to {len(leaders)} host{'s' if len(leaders) > 1 else ''}", size)

    def send(node: int, session: Session) -> None:
        place = watch.places[node]
        links = _send_inputs(session, inputs, place.workdir, progress) if inputs else {}
        session.call("unpack", packed, run_dir=place.run_dir, links=links, moved=progress.moved)

    watch.fleet.on_all_hosts("cannot send the run", send, leaders)


def _send_inputs(session: Session, inputs: Sequence[Input], workdir: str, progress: ByteProgress) -> dict[str, str]:
    """Send what the host's store lacks; return {name in the run directory: path there}."""
    items = [file.item for file in inputs]
    paths: dict[str, str] = session.call("find_inputs", inputs=items, workdir=workdir, timeout=600)["found"]
    missing = {file.sha256: file for file in inputs if file.sha256 not in paths}
    progress.expect(sum(file.size for file in missing.values()))
    for digest, file in missing.items():
        paths[digest] = session.send_file(file.item, file.path, workdir, progress.moved)["path"]
    return links_of(inputs, paths)


def start_agents(watch: HostWatch, secrets: Mapping[str, str], own_script: bool) -> dict[int, Json]:
    """Start one agent per node; return the nodes' first records. Raises HostsError; then no agent is left running.

    `own_script`: by the job's own node.sh.
    """
    payload = json.dumps(dict(secrets)).encode()

    def start(node: int, session: Session) -> Json:
        place = watch.places[node]
        answer = session.call(
            "start", payload, run_dir=place.run_dir, node_rank=node, environ=place.environ, own_script=own_script,
            seconds=START_SECONDS, timeout=START_SECONDS + 5,
        )  # fmt: skip
        record: Json = answer["record"]
        return record

    records, failures = watch.fleet.for_each_host(start, finish_on_interrupt=True)
    if failures:
        raise _undo_start(watch, sorted(records), failures)
    for node, record in records.items():
        watch.views[node] = NodeView(record, reached=True, alive=True)
    return records


def _undo_start(watch: HostWatch, started: Sequence[int], failures: Mapping[int, TargetError]) -> HostsError:
    """Stop the agents that did start; return the error with a line per host."""
    # Where the session broke, the agent may be up or about to be. Without a plan it does not come up.
    unclear = [node for node in failures if not watch.fleet.sessions[node].is_open]
    watch.call("put", unclear, name="plan.json", offset=0, last=True)
    left = stop_now(watch, sorted([*started, *unclear]))
    lines: dict[str, str] = {}
    for node, place in enumerate(watch.places):
        if node in failures:
            lines[place.host] = f"{failures[node]}; it may run there" if node in left else str(failures[node])
        elif node in started:
            lines[place.host] = left.get(node, "started, and stopped again")
    return HostsError(f"the run did not start on {len(failures)} of {len(watch.places)} hosts", lines, code="ZL-RUN-10")
