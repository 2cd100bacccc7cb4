"""JobSpec + facts about the target -> RunPlan: every number and every argv resolved. Pure.

Nothing here touches the network, the clock or a GPU: what must be known of the target stands in `Target`, what the
model is in `ModelFacts`, and both are gathered at the edges (launcher/machine/facts.py and the backends).
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.job.paths import source_paths
from launcher.job.spec import JobSpec
from launcher.plan import autos, batch, batch_job
from launcher.plan.container import NO_CONTAINER, ContainerChoice, Needs, container_plan, needs_of, pyxis_flags
from launcher.plan.types import Launch, Node, Reason, RunPlan, Target
from train import compat, families, memory
from train.config import Data, Lora, Source, TrainConfig, Training

CONTAINER_PYTHON = "python3"
"""The interpreter of the training environment in an image: the first on its PATH."""


def plan(
    spec: JobSpec,
    target: Target,
    *,
    run_id: str,
    model_config: dict[str, Any] | None = None,
    container: ContainerChoice = NO_CONTAINER,
) -> RunPlan:
    """Resolve a job for a target.

    `model_config` is the model's config.json where it could be read (None: unknown until the model is loaded).
    Raises BatchError and CompatibilityError.
    """
    config, reasons = (None, ()) if spec.program else plan_training(spec, target, run_id, model_config)
    resolved = RunPlan(
        run_id=run_id,
        name=spec.name,
        backend=target.backend,
        launch=_launch(spec, target, run_id, container),
        train=config,
        reasons=(*reasons, *_runtime_reason(container)),
        setup=spec.slurm.setup if target.backend == "slurm" else (),
    )
    if target.backend == "slurm":
        resolved = _on_slurm(resolved, spec, target)
    return _in_container(resolved, spec, target, container)


def nodes_of(hosts: tuple[tuple[str, int], ...]) -> tuple[Node, ...]:
    """The rank table: ranks are dealt to the hosts in order, all of a host's together."""
    nodes: list[Node] = []
    for rank, (host, procs) in enumerate(hosts):
        first = nodes[-1].first_rank + nodes[-1].procs if nodes else 0
        nodes.append(Node(node_rank=rank, host=host, procs=procs, first_rank=first))
    return tuple(nodes)


def _launch(spec: JobSpec, target: Target, run_id: str, container: ContainerChoice) -> Launch:
    ranks_python = target.python if container.runtime == "none" else CONTAINER_PYTHON
    training = (ranks_python, "-m", "train", "--config", "train.json")
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
        python=CONTAINER_PYTHON if container.runtime == "pyxis" else target.python,
        argv=_program(spec.program, ranks_python, target.paths) or training,
        cwd=target.cwd if spec.program else None,
        env={**spec.env, **container.cache_variables},
        secrets=spec.secrets,
        cooperative=not spec.program,
        stop_deadline=spec.stop_deadline,
        heartbeat_timeout=spec.heartbeat_timeout,
        max_restarts=spec.max_restarts,
        elastic=spec.elastic,
    )


def _on_slurm(plan: RunPlan, spec: JobSpec, target: Target) -> RunPlan:
    """The plan with what its batch script needs, and Slurm's times to stop. Raises SpecError, CompatibilityError."""
    stop_deadline, kill_after = batch_job.stop_times(spec, kill_after=plan.launch.kill_after)
    return msgspec.structs.replace(
        plan,
        slurm={**batch_job.section(spec, plan.run_id, target.device), "inputs": dict(target.paths)},
        launch=msgspec.structs.replace(plan.launch, stop_deadline=stop_deadline, kill_after=kill_after),
    )


def _in_container(plan: RunPlan, spec: JobSpec, target: Target, container: ContainerChoice) -> RunPlan:
    """The plan with what starts its container: the agent, or srun under pyxis. Comes last, because the engine must wait
    for as long as the run really has for its last checkpoint. Raises UsageError."""
    pyxis: dict[str, Any] | None = None
    launch = plan.launch
    if container.runtime != "none":
        needs = container_needs(spec, target, container, plan.run_id, launch.stop_deadline)
        if container.runtime == "pyxis":
            pyxis = pyxis_flags(needs)
        else:
            launch = msgspec.structs.replace(launch, container=container_plan(container.runtime, needs))
    slurm = {**(plan.slurm or {}), "pyxis": pyxis} if target.backend == "slurm" else plan.slurm
    return msgspec.structs.replace(plan, launch=launch, slurm=slurm)


def _runtime_reason(container: ContainerChoice) -> tuple[Reason, ...]:
    return (
        (Reason(setting="container.runtime", value=container.runtime, reason=container.reason),)
        if container.reason
        else ()
    )


def container_needs(
    spec: JobSpec, target: Target, container: ContainerChoice, run_id: str, stop_deadline: float
) -> Needs:
    """What a run needs of its engine. Raises UsageError."""
    data, adapter = _data_on(target, spec.data), _lora_on(target, spec.lora).adapter
    reads = [spec.model.path, *source_paths(data.train), *source_paths(data.eval), *([adapter] if adapter else [])]
    # A directory's files are links one level deeper than a file's own link.
    folders = sorted({path.rpartition("/")[0] for path in reads if path.startswith("inputs/")})
    return needs_of(
        spec.container,
        container,
        run_id=run_id,
        gpus=target.device == "cuda",
        stop_deadline=stop_deadline,
        reads=[] if spec.program else reads,
        writes=[target.cwd] if spec.program and target.cwd else [],
        links=("inputs",) if spec.program else ("inputs", *folders),
    )


def _program(words: tuple[str, ...], python: str, paths: dict[str, str]) -> tuple[str, ...]:
    """The user's own program; a Python file is run by the training environment's interpreter, unbuffered."""
    words = tuple(paths.get(word, word) for word in words)
    return (python, "-u", *words) if words and words[0].endswith(".py") else words


def _data_on(target: Target, data: Data) -> Data:
    """The data section with the names that its files have on the target."""

    def sources(value: Any) -> Any:
        if isinstance(value, str):
            return target.paths.get(value, value)
        if isinstance(value, Source):
            return msgspec.structs.replace(value, path=sources(value.path))
        return None if value is None else tuple(sources(item) for item in value)

    return msgspec.structs.replace(data, train=sources(data.train), eval=sources(data.eval))


def _lora_on(target: Target, lora: Lora) -> Lora:
    adapter = lora.adapter
    return msgspec.structs.replace(lora, adapter=target.paths.get(adapter, adapter) if adapter else adapter)


def plan_training(
    spec: JobSpec, target: Target, run_id: str, model_config: dict[str, Any] | None
) -> tuple[TrainConfig, tuple[Reason, ...]]:
    """The training program's configuration and the reason of every automatic choice in it."""
    reasons: list[Reason] = []
    choice = _choice(spec, target, model_config)
    if choice is not None:
        reasons += [Reason(setting=r.setting, value=r.value, reason=r.reason) for r in choice.reasons]
        spec = autos.settled(spec, choice)

    def auto(setting: str, value: Any, reason: str) -> Any:
        reasons.append(Reason(setting=setting, value=value, reason=reason))
        return value

    zero_stage = spec.train.zero_stage
    if zero_stage == "auto":
        zero_stage = auto("train.zero_stage", *_zero_stage(spec, target))
    dtype = spec.model.dtype
    if dtype == "auto":
        dtype = auto("model.dtype", *_dtype(spec, target))
    checkpointing = spec.train.gradient_checkpointing
    if checkpointing == "auto":
        on = target.device == "cuda"
        why = "saves activation memory on the GPU" if on else "a CPU has memory to spare; recomputing costs a third"
        checkpointing = auto("train.gradient_checkpointing", on, why)
    packing = spec.train.packing
    if packing == "auto":
        packing = auto("train.packing", "bucket", "records of like lengths share a micro batch within each step")
    largest = 8 if target.device == "cpu" else 16
    solved = batch.solve(spec.train.global_batch_size, spec.train.micro_batch_size, target.world_size, largest=largest)
    if spec.train.micro_batch_size == "auto":
        auto(
            "train.micro_batch_size",
            solved.micro_batch_size,
            f"largest divisor of {solved.global_batch_size}/{solved.world_size} records a rank up to {largest}",
        )
    training = Training(
        **{
            **{f: getattr(spec.train, f) for f in Training.__struct_fields__ if hasattr(spec.train, f)},
            "global_batch_size": solved.global_batch_size,
            "micro_batch_size": solved.micro_batch_size,
            "gradient_accumulation_steps": solved.gradient_accumulation_steps,
            "zero_stage": zero_stage,
            "gradient_checkpointing": checkpointing,
            "packing": packing,
        }
    )
    config = TrainConfig(
        run_id=run_id,
        device=target.device,
        world_size=target.world_size,
        model=msgspec.structs.replace(spec.model, dtype=dtype),
        data=_data_on(target, spec.data),
        lora=_lora_on(target, spec.lora),
        train=training,
        eval=spec.eval,
        predicted_peak_bytes=choice.predicted_peak_bytes if choice else None,
        verify_adapter=spec.verify_adapter,
    )
    _refuse_what_cannot_work(config, target, model_config)
    return config, tuple(reasons)


def _choice(spec: JobSpec, target: Target, model_config: dict[str, Any] | None) -> autos.Choice | None:
    """The planner's word, where the GPU and the model's shape are known; raises DoesNotFit."""
    if target.device != "cuda" or not target.gpu_memory_bytes:
        return None
    try:
        model = autos.model_of(spec.model.path, model_config)
    except memory.UnknownShape:
        return None
    return autos.choose(spec, model, _situation(target)) if model else None


def _situation(target: Target) -> autos.Situation:
    size = target.gpu_memory_bytes or 0
    return autos.Situation.of(target.world_size, size, target.gpu_name, target.compute_capability)


def _zero_stage(spec: JobSpec, target: Target) -> tuple[int, str]:
    if spec.train.offload == "cpu":
        return 2, "DeepSpeed keeps the optimizer's state in the host's memory, from ZeRO-1 on"
    if target.world_size == 1:
        return 0, "one rank has nothing to share"
    return 0, "LoRA's optimizer state is small: plain data parallelism is fastest where the weights fit each GPU"


def _dtype(spec: JobSpec, target: Target) -> tuple[str, str]:
    if target.device == "cpu":
        return "float32", "most CPUs multiply bfloat16 no faster"
    return autos.dtype_of(spec, _situation(target))


def _refuse_what_cannot_work(config: TrainConfig, target: Target, model_config: dict[str, Any] | None) -> None:
    """Raise CompatibilityError with the nearest settings that work. A model that could not be read is known by its name
    or given the family that takes everything; the training program asks again when it has it."""
    family = families.FAMILIES[0] if model_config is None else families.family_of(model_config)
    if model_config is None and (shape := memory.named(config.model.path)):
        family = families.of_type(shape.family)
    known = _situation(target).compute_capability if target.device == "cuda" else None
    capability = None if known is None else autos.two_parts(known)
    autos.refuse(compat.check(compat.Combination.of(config, family, capability)))
