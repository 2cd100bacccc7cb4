"""One rank that trains several runs in turn, so that torch is imported once; its exit status is that of the last."""

from __future__ import annotations

import sys

from train import config as schema
from train import dist
from train.__main__ import check, train
from train.rundir import RunDir

status = 0
for place in sys.argv[1:]:
    config = schema.load(f"{place}/train.json")
    world = dist.from_environment(config.device)
    dist.prepare(world)
    check(config, world)
    status = train(config, world, RunDir(config.run_dir, node=world.node_rank, rank=world.rank))
dist.stop()
dist.leave(status)
