#!/usr/bin/env bash
# Install the wheel and the sdist into clean environments, and use them as a newcomer would (`make install-check`).
#
#   tests/installed.sh DIST PYTHON...
#
# DIST has one wheel and one sdist. EXTRA=train installs the training packages too, and SITE=DIR takes them from another
# site-packages; where they are, the smoke run must succeed, and elsewhere every command that needs them must say so.
set -euo pipefail
dist=$(cd "$1" && pwd)
shift
wheel=$(echo "$dist"/zlaunch-*.whl)
sdist=$(echo "$dist"/zlaunch-*.tar.gz)
checkout=$(cd "$(dirname "$0")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
unset PYTHONPATH VIRTUAL_ENV # neither the checkout nor another environment helps

say() { printf 'installed: %s\n' "$*" >&2; }
die() { printf 'installed: error: %s\n' "$*" >&2; exit 1; }

# has TEXT COMMAND...: run it, and look for the text in what it prints.
has() {
    local text=$1 output
    shift
    output=$("$@" 2>&1) || die "exit status $? of $*: $output"
    [[ $output == *"$text"* ]] || die "no '$text' in what $* prints: $output"
}

# refuses TEXT COMMAND...: it must fail, with the text.
refuses() {
    local text=$1 output
    shift
    if output=$("$@" 2>&1); then die "$* succeeded: $output"; fi
    [[ $output == *"$text"* ]] || die "no '$text' in what $* prints: $output"
}

# The commit that the archives were made of; empty where nobody knows it.
revision=$(git -C "$checkout" rev-parse HEAD 2>/dev/null || true)

# use ZLAUNCH PYTHON: what works without a GPU, a cluster, hosts or a network.
use() {
    local zlaunch=$1 python=$2 place
    place=$(mktemp -d -p "$scratch")
    cd "$place"
    export ZLAUNCH_RUNS=$place/runs
    has "(revision ${revision:-unknown}" "$zlaunch" --version
    has "Train on a Slurm cluster" "$zlaunch" --help
    has "job.yaml" "$zlaunch" init job.yaml
    has "lora.r" "$zlaunch" keys lora_rank
    "$zlaunch" schema | "$python" -c 'import json, sys; assert json.load(sys.stdin)["properties"]["lora"]'
    printf 'node1 slots=2\nnode2 slots=2\n' >hosts
    has "nothing was started" "$zlaunch" local --smoke --device cpu --procs 2 --dry-run
    has "ranks: 4, nodes: 2" "$zlaunch" ssh --smoke --hostfile hosts --dry-run
    has "#SBATCH --nodes=2" "$zlaunch" slurm --smoke --nodes 2 --gpus-per-node 2 --print-script
    bash -n "$place"/runs/*/node.sh || die "a rendered node.sh is no script"
    mkdir -p checkpoint
    if "$python" -c 'import torch, transformers, peft' 2>/dev/null; then
        has "SUCCEEDED" "$zlaunch" local --smoke --device cpu --procs 1
        has "no problem that would stop a run" "$zlaunch" data check --smoke --device cpu
        say "smoke run and data check: $("$python" -V)"
    else
        refuses "pip install 'zlaunch[train]'" "$zlaunch" local --smoke --device cpu
        refuses "pip install 'zlaunch[train]'" "$zlaunch" data check --smoke --device cpu
        refuses "pip install 'zlaunch[train]'" "$zlaunch" convert checkpoint made
    fi
    cd "$checkout"
}

environment() { # environment PYTHON ARCHIVE: a clean one with the archive; prints its directory
    local venv
    venv=$(mktemp -d -p "$scratch")
    "$1" -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check "$2${EXTRA:+[$EXTRA]}"
    if [ -n "${SITE:-}" ]; then echo "$SITE" >"$("$venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')/more.pth"; fi
    echo "$venv"
}

for python in "$@"; do
    for archive in "$wheel" "$sdist"; do
        say "$("$python" -V), pip install $(basename "$archive")"
        venv=$(environment "$python" "$archive")
        use "$venv/bin/zlaunch" "$venv/bin/python"
        rm -rf "$venv"
    done
    if command -v uv >/dev/null; then
        say "$("$python" -V), uvx and uv tool install"
        export UV_TOOL_DIR=$scratch/tools UV_TOOL_BIN_DIR=$scratch/bin
        has "Train on a Slurm cluster" uvx -q --python "$python" --from "$wheel" zlaunch --help
        uv tool install -q --force --python "$python" "$wheel"
        use "$scratch/bin/zlaunch" "$scratch/tools/zlaunch/bin/python"
    fi
done
say "all of it works"
