#!/bin/sh
# Make or refresh the environment in .venv (`make env`). Does nothing when it is current.
#
#   docker/install_env.sh [VENV]
#
# Needs only Python >= 3.10 and, on Debian and Ubuntu, apt for what their python3 leaves out. Every version comes from the
# locks in docker/requirements, from which the image is built as well. Set ZLAUNCH_VARIANT=cpu|cuda|cuda12 to choose the
# variant instead of the driver, and PYTHON to choose the interpreter.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$root/.venv}
req=$root/docker/requirements

say() { printf 'env: %s\n' "$*" >&2; }
die() { printf 'env: error: %s\n' "$*" >&2; exit 1; }

find_python() {
    for name in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.10 to 3.14 found; install python3, or name one: make env PYTHON=/path/to/python3"
}

# One line per GPU: the version of the driver, and the compute capability. Drivers before 510 do not tell the second.
gpus() {
    command -v nvidia-smi >/dev/null 2>&1 || return 0
    timeout 30 nvidia-smi --query-gpu=driver_version,compute_cap --format=csv,noheader 2>/dev/null ||
        timeout 30 nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null || true
}

# CUDA 13 needs driver 580 and compute capability 7.5; CUDA 12 serves older ones (launcher/machine/cuda_wheel.py).
find_variant() {
    gpus | awk -F '[ ,]+' '
        $1 !~ /^[0-9]+[.]/ { next }
        { found = 1 }
        $1 + 0 < 580 || ($2 ~ /^[0-9]+[.][0-9]+$/ && $2 + 0 < 7.5) { old = 1 }
        END { print (!found ? "cpu" : old ? "cuda12" : "cuda") }'
}

# apt_get PACKAGE...: install what Debian's and Ubuntu's python3 leaves out, if this user is allowed to.
apt_get() {
    command -v apt-get >/dev/null 2>&1 || die "this needs what Debian calls: $* ; install it with your system's package manager"
    [ "$(id -u)" = 0 ] || die "this needs the packages: $* ; run: sudo apt-get install $*"
    say "apt-get install $*"
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; } ||
        die "apt-get could not install: $*"
}

python=$(find_python)
variant=${ZLAUNCH_VARIANT:-$(find_variant)}
case $variant in cpu | cuda | cuda12) ;; *) die "ZLAUNCH_VARIANT is '$variant', not cpu, cuda or cuda12" ;; esac

# The stamp hashes everything that the environment is made from. pyproject.toml is part of it because of its entry point.
stamp=$({
    "$python" -c 'import sys; print(sys.version)'
    echo "$variant"
    cat "$req"/*.txt "$root/pyproject.toml" "$root"/docker/install_*.sh
} | sha256sum | cut -d ' ' -f 1)
if [ "$(cat "$venv/.stamp" 2>/dev/null || true)" = "$stamp" ]; then
    exit 0
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
say "making $venv ($variant, Python $version); minutes the first time"
# Debian packages the pip seed of the venv module apart. Without it, `-m venv` fails half way.
"$python" -c 'import ensurepip, venv' 2>/dev/null || apt_get "python$version-venv"
if [ "$variant" != cpu ]; then
    # Triton compiles its driver binding at the first GPU kernel. A CPU needs no compiler.
    command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 || apt_get gcc libc6-dev
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' ||
        apt_get "python$version-dev"
fi

# With another interpreter or variant, start from scratch. Otherwise pip changes only what changed.
[ "$(cat "$venv/.variant" 2>/dev/null || true)" = "$variant $python $version" ] || rm -rf "$venv"
rm -f "$venv/.stamp"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "$variant $python $version" >"$venv/.variant"

sh "$root/docker/install_packages.sh" "$venv/bin/python" "$variant" "$req/ui.txt" "$req/dev.txt"
PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/python" -m pip install -q --no-deps --no-index --no-build-isolation --editable "$root"
printf '%s\n' "$stamp" >"$venv/.stamp"
say "ready: $venv/bin/zlaunch"
