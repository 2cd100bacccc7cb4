#!/usr/bin/env bash
# usage: bash node.sh NODE_RANK [agent options]     run demo-20261123-120000-abcd
# The command of a node. It becomes the agent, which starts and supervises the ranks of this node.
# -S: the agent needs no installed packages. The interpreters of the ranks find their own.
# -X utf8: names of runs are UTF-8 in any locale of the host. The ranks keep the locale.
set -euo pipefail
here=${BASH_SOURCE[0]%node.sh}
cd -- "${here:-.}"
rank=${1:?usage: bash node.sh NODE_RANK}
shift
exec /usr/bin/python3 -X utf8 -S code/node/agent/__main__.py --run-dir . --node-rank "$rank" "$@"
