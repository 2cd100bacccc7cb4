#!/usr/bin/env bash
# The same run by hand with DeepSpeed's own launcher. On every host, in this directory:
#     bash deepspeed.sh NODE_RANK
# No agent watches such a run: no restarts, no clean stop on Ctrl-C, no `zlaunch status`.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"
export PYTHONPATH="$PWD/code${PYTHONPATH:+:$PYTHONPATH}"
exec /usr/bin/python3 -m deepspeed.launcher.runner --hostfile hostfile --no_ssh --no_local_rank --node_rank "${1:?usage: bash deepspeed.sh NODE_RANK}" --master_addr 10.0.0.1 --master_port 29500 --module train --config train.json
