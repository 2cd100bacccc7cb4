#!/bin/sh
# Make or refresh the environment in .venv (`make env`). Does nothing when it is current.
#
#   docker/install_env.sh [VENV]
#
# Needs only Python >= 3.10 and, on Debian and Ubuntu, apt for what their python3 leaves out. Every version comes from the
# locks in docker/requirements, from which the image is built as well. Set ZLAUNCH_VARIANT=cpu|cuda to choose the variant,
# and PYTHON to choose the interpreter.
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

find_variant() {
    if command -v nvidia-smi >/dev/null 2>&1 && timeout 30 nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo cuda
    else
        echo cpu
    fi
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
case $variant in cpu | cuda) ;; *) die "ZLAUNCH_VARIANT is '$variant', not cpu or cuda" ;; esac

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
if [ "$variant" = cuda ]; then
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
