"""Speed and memory of training steps on a GPU, ours and those of the alternatives.

    python -m tests.bench.gpu                  both tables
    python -m tests.bench.gpu speed            every workload, engine by engine
    python -m tests.bench.gpu memory           measured peaks and the planner's predictions
    python -m tests.bench.gpu case engine=fused workload=records shape=llama3-8b quantization=nf4 steps=8
    --out DIR                              results.jsonl, and a profile if a case asks for one

cases.py      what is measured: a Case, its records, the cases of each table
models.py     random models of a named shape, in memory or as a checkpoint
ours.py       a case on the real path of the program: sampler, collation, train.loop, loss, clipping, AdamW
others.py     the alternatives: Unsloth, and TRL's packing, as their documentation shows them
profile.py    one step under torch's profiler: time by kernel, and how long the GPU waits
children.py   cases in separate processes, whose imports run while the previous case is measured
tables.py     results as Markdown tables, with ratios

All tokens carry loss, which is the most expensive case. A result without gradients (grad_norm 0) is an error.
"""
