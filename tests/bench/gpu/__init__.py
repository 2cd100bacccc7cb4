"""Speed and memory of training steps on a GPU, ours beside what a user would otherwise take.

    python -m tests.bench.gpu                  both tables
    python -m tests.bench.gpu speed            every workload, engine by engine
    python -m tests.bench.gpu memory           measured peaks beside the planner's predictions
    python -m tests.bench.gpu case engine=fused workload=records shape=llama3-8b quantization=nf4 steps=8
    --out DIR                              results.jsonl, and a profile where a case asks for one

cases.py      what is measured: a Case, its records, the tables' lists of cases
models.py     random models of a named shape, in memory or as a checkpoint
ours.py       a case on the real path of the program: sampler, collation, train.loop, loss, clipping, AdamW
others.py     what a user would otherwise take: Unsloth, and TRL's packing, as their documentation shows them
profile.py    one step under torch's profiler: time by kernel, and how long the GPU waits
children.py   cases in processes of their own, whose imports run while the case before is measured
tables.py     lines of results as Markdown, with ratios

All tokens carry loss, which is the most expensive case; a result without gradients (grad_norm 0) is an error.
"""
