#!/usr/bin/env bash
# On a host with podman's programs, as root: configure podman, describe the host's GPUs to it (CDI), and make two images
# without a registry: IMAGE for podman, and PLACE/tree for Charliecloud. They are skeletons, into which a job mounts the
# host's own /usr and /opt, so that carrying them costs nothing.
# usage: [PYTHON=python3] [MOUNTS="FILE..."] containers.sh PLACE [IMAGE FILE]
#   PLACE: on a file system that holds an overlay. MOUNTS: further places for mounts, which Charliecloud does not make.
#   IMAGE, FILE: podman's image, and the archive of it that the first host writes and the others load. Without them
#   only PLACE/tree is made, and nothing outside of PLACE is touched.
set -euo pipefail
PLACE=${1:?} IMAGE=${2:-} FILE=${3:-} PYTHON=${PYTHON:-python3}
rm -rf "$PLACE"
mkdir -p "$PLACE"

tree=$PLACE/tree
mkdir -p "$tree"/{usr,opt,etc,tmp,run,proc,sys,dev,mnt,root,work,var/tmp}
chmod 755 "$tree"
chmod 1777 "$tree/tmp" "$tree/var/tmp"
for link in bin sbin lib lib64; do [ ! -L "/$link" ] || cp -a "/$link" "$tree/$link"; done
cp -a /etc/ld.so.cache /etc/passwd /etc/group /etc/nsswitch.conf "$tree/etc/"
for more in /etc/alternatives /etc/ld.so.conf /etc/ld.so.conf.d; do [ ! -e "$more" ] || cp -a "$more" "$tree/etc/"; done
for more in hosts resolv.conf; do : > "$tree/etc/$more"; done
path=$(dirname "$(command -v "$PYTHON")"):/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir "$tree/ch"
echo "PATH=$path" > "$tree/ch/environment"     # Charliecloud reads variables of an image there
# Charliecloud makes no places for mounts.
for mount in ${MOUNTS:-}; do
  if [ -d "$mount" ]; then mkdir -p "$tree$mount"; else mkdir -p "$(dirname "$tree$mount")" && : > "$tree$mount"; fi
done

[ -n "$IMAGE" ] || exit 0

mkdir -p /etc/containers /etc/cdi
printf '[storage]\ndriver = "overlay"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$PLACE" "$PLACE" > /etc/containers/storage.conf
[ -e /etc/containers/policy.json ] || echo '{"default": [{"type": "insecureAcceptAnything"}]}' > /etc/containers/policy.json

# What `nvidia-ctk cdi generate` writes, by hand: each GPU by its place and by the number of its device file.
{
  printf 'cdiVersion: "0.5.0"\nkind: nvidia.com/gpu\ndevices:\n'
  gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | sort -V)
  place=0 named=" "
  for gpu in $gpus; do
    for name in "$place" "${gpu#/dev/nvidia}"; do
      case $named in *" $name "*) continue ;; esac
      named="$named$name "
      printf -- '- name: "%s"\n  containerEdits:\n    deviceNodes:\n    - path: %s\n' "$name" "$gpu"
    done
    place=$((place + 1))
  done
  printf -- '- name: all\n  containerEdits:\n    deviceNodes:\n'
  for gpu in $gpus /dev/null; do printf -- '    - path: %s\n' "$gpu"; done
  printf 'containerEdits:\n  env:\n  - NVIDIA_VISIBLE_DEVICES=void\n  deviceNodes:\n  - path: /dev/zero\n'
  for node in /dev/nvidiactl /dev/nvidia-uvm /dev/nvidia-uvm-tools; do [ ! -e "$node" ] || printf -- '  - path: %s\n' "$node"; done
} > /etc/cdi/nvidia.yaml

# Simulated hosts have no systemd, and no cgroup that may be divided; crun refuses the mixed cgroups of some machines.
for try in crun:disabled runc:enabled crun:enabled; do
  printf '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "%s"\n[containers]\ncgroups = "%s"\n' \
    "${try%:*}" "${try#*:}" > /etc/containers/containers.conf
  if podman image exists "$IMAGE"; then :; elif [ -e "$FILE" ]; then podman load -q -i "$FILE"; else
    tar -C "$tree" -c . | podman import -q --change "ENV PATH=$path" - "$IMAGE"
    podman save -q -o "$FILE" "$IMAGE"    # one image has one id on all hosts
  fi
  limits=(--ulimit="nofile=$(ulimit -n):$(ulimit -n)" --ulimit=nproc=1024:1024)
  if why=$(podman run --rm --network=host "${limits[@]}" -v /usr:/usr:ro "$IMAGE" true 2>&1); then echo "$try"; exit 0; fi
  echo "$try: $why"
done
exit 1
