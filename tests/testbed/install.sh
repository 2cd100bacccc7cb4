#!/usr/bin/env bash
# Install what the test bed needs: a real sshd, a real Slurm with accounting, a container engine, iproute2, a browser.
# Root on Debian or Ubuntu only. Idempotent: if nothing is missing, it only asks dpkg and returns at once.
# usage: install.sh            install what is missing
#        install.sh --check    print what is missing; exit 1 if anything is
set -euo pipefail

PACKAGES=(
  openssh-server openssh-client iproute2 util-linux   # the lab of simulated hosts, the farm of sshd
  tmux                                                # the live view in a real terminal
  faketime                                            # a host with a wrong clock
  fish tcsh zsh                                       # login shells that are not like sh
  pdsh                                                # the alternative in the fan-out benchmark
  slurm-wlm munge slurmdbd mariadb-server             # Slurm, and its accounting
  chromium fonts-noto-cjk                             # the report page in a real browser, with Chinese
  docker.io busybox-static charliecloud-runtime       # containers: a private dockerd, a base image from busybox, ch-run
  podman runc uidmap                                  # a container engine without a daemon, also for users without rights
)

missing=()
for package in "${PACKAGES[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then exit 0; fi
if [ "${1:-}" = --check ]; then echo "missing packages: ${missing[*]}"; exit 1; fi

command -v apt-get >/dev/null || { echo "install.sh: only Debian and Ubuntu are known here" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "install.sh: must run as root" >&2; exit 1; }

# Keep the packages from starting their own daemons: a system Slurm, MariaDB or dockerd would hold ports and sockets.
# Debian's way is policy-rc.d. If the file exists already, it belongs to someone else: leave it alone.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
  trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null; }
