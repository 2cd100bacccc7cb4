#!/bin/sh
# As process 1, run the program behind an init that forwards signals and reaps orphans. `docker run --init` brings its own
# init; zlaunch passes that option in every run. Without it and without tini (docker/README.md), the program is process 1.
if [ "$$" = 1 ] && command -v tini >/dev/null 2>&1; then
    exec tini -g -- "$@"
fi
exec "$@"
