#!/bin/sh
# As process 1, stand behind an init that forwards signals and reaps orphans. `docker run --init` brings its own, and so
# do zlaunch's runs; where there is neither that nor tini (docker/README.md), the program itself is process 1.
if [ "$$" = 1 ] && command -v tini >/dev/null 2>&1; then
    exec tini -g -- "$@"
fi
exec "$@"
