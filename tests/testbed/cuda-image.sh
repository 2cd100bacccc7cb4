#!/usr/bin/env bash
# Build the CUDA image for real without a registry: a base from Debian's archive (debootstrap), wheels from the package index.
# Then show its layers, import its packages, and train the smoke model in it on the CPU. Root; 20 GB of disk, ten minutes.
# usage: [PYTHON=.venv/bin/python] cuda-image.sh cuda|cuda12 [PLACE]     PYTHON must have the version of Debian 12's, 3.11
set -euo pipefail
VARIANT=${1:?} PLACE=${2:-} PYTHON=$(realpath -s "${PYTHON:-.venv/bin/python}")
HERE=$(cd "$(dirname "$0")" && pwd)
PROJECT=$(cd "$HERE/../.." && pwd)
PLACE=${PLACE:-$(mktemp -d)}
mkdir -p "$PLACE"
trap 'bash "$HERE/docker-down.sh" "$PLACE/docker"; rm -rf --one-file-system "$PLACE"' EXIT
say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }

say "base image: Debian 12"
debootstrap --variant=minbase --include=python3,ca-certificates bookworm "$PLACE/base" > "$PLACE/debootstrap.log" ||
  { tail -5 "$PLACE/debootstrap.log"; exit 1; }
bash "$HERE/docker-up.sh" "$PLACE/docker"
export DOCKER_HOST=unix://$PLACE/docker/docker.sock DOCKER_BUILDKIT=1 PATH=/usr/bin:$PATH      # Debian's client has BuildKit
tar -C "$PLACE/base" --exclude='./var/cache/apt/*.bin' --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' -c . |
  docker import - zlaunch-base:debian12
rm -rf --one-file-system "$PLACE/base"

say "wheels of the lock"
sh "$PROJECT/docker/fetch_wheels.sh" "$PLACE/wheels" "$VARIANT" "$PYTHON"
du -sh "$PLACE/wheels"

say "zlaunch build --variant $VARIANT"
export ZLAUNCH_IMAGE_LOCK=$PLACE/image.lock ZLAUNCH_RUNS=$PLACE/runs PYTHONPATH=$PROJECT TMPDIR=$PLACE
cd "$PROJECT"
"$PYTHON" -m launcher build --variant "$VARIANT" --tag "zlaunch-test:$VARIANT" --base-image zlaunch-base:debian12 \
  --wheels "$PLACE/wheels" --network host > "$PLACE/build.log" 2>&1 || { tail -40 "$PLACE/build.log"; exit 1; }
tail -2 "$PLACE/build.log"
docker history --format '{{.Size}}\t{{.CreatedBy}}' "zlaunch-test:$VARIANT" | grep -v '^0B' | cut -c1-100
docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}'

say "imports"
docker run --rm -i --network=host "zlaunch-test:$VARIANT" python - <<'PY'
import importlib, shutil
import torch, unsloth
assert torch.version.cuda and shutil.which("gcc") is None and shutil.which("tini")
names = "torch transformers peft trl datasets accelerate bitsandbytes deepspeed triton unsloth train.__main__ launcher.cli"
for name in names.split():
    print(name, getattr(importlib.import_module(name), "__version__", "imported"))
print("CUDA", torch.version.cuda)
PY

say "a training in the image, on the CPU"
"$PYTHON" -m launcher local --device cpu --procs 2 --smoke --container docker --image "zlaunch-test:$VARIANT" --json > "$PLACE/run.log" 2>&1 ||
  { tail -40 "$PLACE/run.log"; exit 1; }
grep -E '^SUCCEEDED' "$PLACE/run.log"
say done
