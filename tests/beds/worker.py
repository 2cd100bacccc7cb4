"""Train several runs in turn as one rank, so that torch is imported once. The exit status is that of the last run."""

from __future__ import annotations

import sys

from train import dist
from train.__main__ import train
from train.config import load
from train.rundir.run_files import RunDir
from train.training.start import check_config

status = 0
for place in sys.argv[1:]:
    config = load(f"{place}/train.json")
    world = dist.from_environment(config.device)
    dist.prepare(world)
    check_config(config, world)
    status = train(config, world, RunDir(config.run_dir, node=world.node_rank, rank=world.rank))
dist.stop()
dist.leave(status)
