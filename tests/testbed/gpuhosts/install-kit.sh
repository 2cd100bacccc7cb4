#!/usr/bin/env bash
# On the GPU machine, as root: unpack a kit of make-kit.sh. A library is taken only where the machine has none of its name.
# usage: PY=PYTHON install-kit.sh KIT [PREFIX]      the project is unpacked to PREFIX/project (default /opt/zlaunch-kit)
#   PY: the interpreter of the training environment; it finds the wheels of the kit afterwards.
set -euo pipefail
KIT=${1:?} PREFIX=${2:-/opt/zlaunch-kit} PY=${PY:-python3}
mkdir -p "$PREFIX/project" "$PREFIX/site" /usr/local/lib/zlaunch-kit
tar -C / --no-same-owner --keep-directory-symlink -xJf "$KIT/system.tar.xz"
tar -C "$PREFIX/project" --no-same-owner -xzf "$KIT/project.tgz"
known=$(ldconfig -p | awk '{print $1}')
for file in /opt/zlaunch-kit/lib/*; do
  grep -qxF "${file##*/}" <<< "$known" || cp "$file" /usr/local/lib/zlaunch-kit/
done
echo /usr/local/lib/zlaunch-kit > /etc/ld.so.conf.d/zzz-zlaunch-kit.conf
# A driver that is mounted and known by LD_LIBRARY_PATH only: sessions of sshd do not have that variable.
for dir in /usr/local/nvidia/lib64 /usr/local/nvidia/lib; do
  [ ! -d "$dir" ] || grep -q 'libcuda.so.1' <<< "$known" || echo "$dir"
done > /etc/ld.so.conf.d/zz-nvidia.conf
ldconfig
smi=$(command -v nvidia-smi || true)
case $smi in '' | /usr/bin/* | /usr/local/bin/*) ;; *) ln -sf "$(readlink -f "$smi")" /usr/local/bin/nvidia-smi ;; esac
grep -q '^sshd:' /etc/passwd || echo 'sshd:x:101:65534::/run/sshd:/usr/sbin/nologin' >> /etc/passwd
grep -q '^nogroup:' /etc/group || echo 'nogroup:x:65534:' >> /etc/group
chown root:root / /opt /usr /etc /var       # sshd and munge refuse directories of others
mkdir -p /run/sshd /var/empty
if [ -d "$KIT/wheels" ]; then
  for wheel in "$KIT"/wheels/*.whl; do "$PY" -m zipfile -e "$wheel" "$PREFIX/site" & done
  wait
  echo "$PREFIX/site" > "$("$PY" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zlaunch-kit.pth"
fi
for program in ip sshd ssh munged slurmctld slurmd srun; do
  path=$(PATH=$PATH:/usr/sbin command -v "$program") || { echo "missing: $program"; continue; }
  absent=$(ldd "$path" 2>/dev/null | grep 'not found' || true)
  [ -z "$absent" ] || echo "$program: $absent"
done
