#!/bin/sh
# Fetch everything that the image installs into a directory, for `zlaunch build --wheels DIR`.
#
#   docker/fetch_wheels.sh DIR [cpu|cuda|cuda12] [PYTHON]
#
# The pip of this machine runs with its own configuration (private index, credentials, certificates, proxy). None of that
# enters the build: no build argument, no layer. The directory also serves a build without a network.
# PYTHON must have the version of the base image's Python, and setuptools (`make env` makes such a one).
set -eu
dir=$1 variant=${2:-cuda} python=${3:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir"
fetch() { "$python" -m pip download -q --no-input --disable-pip-version-check --no-deps --no-build-isolation -d "$dir" "$@"; }
fetch --require-hashes -r "$here/requirements/build.txt" -r "$here/requirements/$variant.txt"
if [ "$variant" = cpu ]; then
    torch=$(sed -n 's/^torch==//p' "$here/requirements/train.in")
    fetch --no-index "torch==$torch" 2>/dev/null ||
        fetch --no-index --find-links https://download.pytorch.org/whl/cpu/torch/ "torch==$torch"
fi
