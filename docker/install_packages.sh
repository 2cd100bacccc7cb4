#!/bin/sh
# Install the locked packages of one variant into an existing virtual environment.
#
#   docker/install_packages.sh VENV_PYTHON cpu|cuda|cuda12 [LOCK...]
#
# This script makes both the bare environment (install_env.sh) and the image (Dockerfile), from the same locks. The locks
# are complete, so pip resolves nothing (--no-deps): Unsloth's own pins do not resolve on every index. Every package is
# checked by hash, except the CPU build of torch. PyPI does not carry it, so it is pinned by version.
set -eu
python=$1 variant=$2
shift 2
req=$(cd "$(dirname "$0")" && pwd)/requirements
torch=$(sed -n 's/^torch==//p' "$req/train.in")

pip() {
    command=$1
    shift
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore "$python" -m pip "$command" -q --no-input "$@"
}
# Do not compile: Python compiles a module at its first import, and compiling all takes longer than the installation.
locked() { pip install --no-compile --no-deps --require-hashes --no-build-isolation -r "$1"; }

# PyPI's torch for Linux is a CUDA build of gigabytes. Prefer a wheel that pip is configured to find locally, then
# PyTorch's own CPU wheels.
cpu_torch() {
    have=$("$python" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true)
    case $have in "$torch" | "$torch"+cpu) return ;; esac
    scratch=$(mktemp -d)
    if pip download --no-index --no-deps -d "$scratch" "torch==$torch" >/dev/null 2>&1; then
        echo "torch $torch from a local wheel" >&2
    else
        echo "torch $torch from PyTorch's CPU wheels" >&2
        pip download --no-index --no-deps -d "$scratch" --find-links https://download.pytorch.org/whl/cpu/torch/ \
            "torch==$torch" || { rm -rf "$scratch"; echo "error: no CPU build of torch $torch for this Python" >&2; exit 1; }
    fi
    pip install --no-compile --no-index --no-deps "$scratch"/torch-*.whl
    rm -rf "$scratch"
}

locked "$req/build.txt"
# deepspeed's setup.py probes the machine's compilers when it finds torch, so torch comes after it.
locked "$req/$variant.txt"
[ "$variant" != cpu ] || cpu_torch
for lock in "$@"; do locked "$lock"; done
