"""Feed a tracker (TensorBoard, Weights & Biases, SwanLab, MLflow, Trackio) from the files of a run.

`python -m train.trackers NAME --run-dir DIR --record FILE` is one process beside the agent for each tracker, which
launcher/node/companions starts. It only reads metrics.jsonl, result.json and the plan, so a tracker that fails, hangs
or crashes cannot touch the training. Imports nothing heavy; the tracker's package only in its own process.
"""
