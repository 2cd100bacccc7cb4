#!/bin/sh
# Rewrite the locks from the *.in files (needs `uv`). One set of versions serves the bare environment and the image:
# the universal resolution covers every supported Python, and the other locks are held to the versions of cuda.txt.
set -eu
cd "$(dirname "$0")"
only="implementation_name == 'cpython' and platform_machine == 'x86_64'"
lock() {
    out=$1
    shift
    uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-annotate \
        --custom-compile-command "docker/requirements/lock.sh" --overrides overrides.in "$@" --output-file "$out"
    # The condition that pyproject.toml sets for all of them says nothing on each line.
    sed -i -e "s/ and $only and platform_python_implementation != 'PyPy' and sys_platform == 'linux'//" \
        -e "s/ and $only and sys_platform == 'linux'//" \
        -e "s/ ; $only and platform_python_implementation != 'PyPy' and sys_platform == 'linux'//" \
        -e "s/ ; $only and sys_platform == 'linux'//" "$out"
}
rm -f build.txt cuda.txt cuda12.txt cpu.txt ui.txt dev.txt
lock cuda.txt train.in launcher.in build.in
# CUDA 12: only torch and what belongs to it have other versions.
held=$(mktemp)
trap 'rm -f "$held"' EXIT
sed -n 's/^\([a-z0-9].*\) \\$/\1/p' cuda.txt | grep -vE '^(torch|triton|(nvidia|cuda)-[a-z0-9-]*)==' >"$held"
lock cuda12.txt train.in launcher.in build.in --overrides overrides-cuda12.in --constraints "$held"
lock build.txt build.in --constraints cuda.txt
lock cpu.txt train.in launcher.in torch-cpu.in --overrides overrides-cpu.in --constraints cuda.txt
lock ui.txt ui.in --constraints cuda.txt
lock dev.txt dev.in --constraints cuda.txt
