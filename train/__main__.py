"""Train one LoRA adapter from a configuration file, alone or as one of several ranks:

    python -m train --config train.json
    torchrun --nproc-per-node 2 -m train --config train.json

Exit status: 0 done; 75 stopped on request, with a checkpoint; 2 a mistake in the request; any other value is a
failure, which errors/rank-<R>.json describes.
"""

from __future__ import annotations

import time

STARTED = time.time()  # before the imports: result.json counts them too

from train.rundir import bytecode, heartbeat  # noqa: E402

heartbeat.show_stacks_on_request()
bytecode.keep()

import argparse  # noqa: E402
import os  # noqa: E402

from train import dist  # noqa: E402
from train.config import EXIT_STOPPED, TrainConfig, load  # noqa: E402
from train.dist import World  # noqa: E402
from train.errors import UserError, report  # noqa: E402
from train.rundir.heartbeat import Heartbeat  # noqa: E402
from train.rundir.run_files import RunDir  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, help="train.json of a run directory")
    options = parser.parse_args(arguments)
    config: TrainConfig | None = None
    rundir: RunDir | None = None
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = _read(options.config)
        world = dist.from_environment(config.device)
        rundir = RunDir(config.run_dir, node=world.node_rank, rank=world.rank)
        dist.prepare(world)
        dist.wake_gpu(world)
        from train.training import start  # imports torch

        start.check_config(config, world)
        status = train(config, world, rundir)
    except Exception as error:
        return report(error, rundir, config, rank)
    dist.stop()
    return status


def _read(path: str) -> TrainConfig:
    try:
        return load(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", code="ZL-TRAIN-05") from error


def train(config: TrainConfig, world: World, rundir: RunDir) -> int:
    """Take every step of a run, in order; returns the exit status."""
    signs = Heartbeat(config.train.hang_timeout)
    signs.working("start")
    from train.training import start, steps  # import torch: a mistake in train.json is reported without that wait

    config = start.continue_adapter(config, world, rundir)
    run = steps.Run(config, world, rundir, STARTED, signs)
    steps.remove_leftovers(run)
    steps.choose_engine(run)
    steps.load_model(run)
    steps.add_adapter(run)
    steps.read_records(run)
    steps.build_strategy(run)
    steps.resume(run)
    steps.evaluate_and_train(run)
    steps.save_adapter(run)
    steps.write_result(run)
    dist.wait(world)
    return EXIT_STOPPED if run.stopped else 0


if __name__ == "__main__":
    dist.leave(main())
