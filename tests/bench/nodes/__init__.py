"""`make bench-nodes`: one run over several hosts, through `zlaunch ssh` and `zlaunch slurm` themselves.

    python -m tests.bench.nodes [smoke] [losses] [speed] [faults] [resume] [slurm] [options]
    --gpus-per-host N    simulate hosts on this machine, each with N of its GPUs (root; see tests/testbed/gpuhosts)
    --hosts a,b          real hosts; --shared names a directory that all of them see
    --device cpu         try all of it with CPU ranks; its speed means nothing
    --minutes M          leave out what does not fit into M minutes

smoke     A dozen steps of a tiny model on all hosts.
losses    A small model at the same records per step on one rank and on all hosts: its losses and its speed.
speed     A larger model at the same records per step and rank: one rank, as many ranks of one host, and all hosts; on
          instruction records and on dense rows.
faults    A killed rank, and a host that dies while the run is elastic. Nothing may be left running.
elastic   The first host dies; the run goes on without it, from a copy of its checkpoint; then the host joins again.
resume    Ctrl-C on all hosts, then a resume on the first one.
slurm     A smoke run, a preemption with requeue and resume (`preempt` alone does that), and a host that dies, through
          Slurm.
containers  Smoke runs in podman through each backend, and in Charliecloud.
network   `zlaunch doctor net`.
unsloth   Unsloth under ZeRO-2, and what its start takes.
large     A 70B model under ZeRO-3, in fp8 and bfloat16. Only if named: its random weights take 141 GB.

__main__.py   options, the order of the parts, the time limit
hosts.py      simulated and real hosts
runs.py       start runs, follow and measure them
speeds.py     smoke, losses, speed, network, unsloth, large
containers.py containers
models.py     random models, written in a process of its own
faults.py     faults, elastic, resume, slurm, preempt
tables.py     rows as JSON and as Markdown
"""
