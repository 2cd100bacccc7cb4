#!/usr/bin/env bash
# On Debian with the packages of ../install.sh: collect what a bare GPU machine lacks for the simulated hosts, in one folder.
#   system.tar.xz   ip, sshd, ssh, munge and Slurm, each with its libraries; where they are installed, podman's programs
#                   and Charliecloud's
#   wheels/         packages of the training environment that the machine lacks, if WHEELS names a folder of them
#   project.tgz     this checkout
# usage: make-kit.sh OUT [WHEELS]      then, on the GPU machine: install-kit.sh OUT [PREFIX]
set -euo pipefail
OUT=${1:?} WHEELS=${2:-}
PROJECT=$(cd "$(dirname "$0")/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
kit=$work/kit
libraries=$kit/opt/zlaunch-kit/lib
mkdir -p "$libraries" "$OUT"

for program in ip sshd ssh ssh-keygen munged munge unmunge slurmctld slurmd slurmstepd \
  sbatch srun squeue scancel scontrol sinfo sacct sacctmgr; do
  path=$(PATH=$PATH:/usr/sbin:/sbin command -v "$program" || true)
  [ -n "$path" ] || { [ "$program" = slurmstepd ] && path=/usr/sbin/slurmstepd; }
  case $path in /usr/*) ;; *) path=/usr$path ;; esac      # /bin and /sbin are links on the other machine too
  mkdir -p "$kit$(dirname "$path")"
  cp -L "$path" "$kit$path"
done
for program in podman conmon crun runc ch-run; do
  path=$(PATH=$PATH:/usr/sbin command -v "$program") || continue
  mkdir -p "$kit$(dirname "$path")"
  cp -L "$path" "$kit$path"
done
plugins=/usr/lib/x86_64-linux-gnu/slurm-wlm
mkdir -p "$kit$plugins"
cp -a "$plugins/." "$kit$plugins/"
# Plugins that no cluster of the test bed loads would bring half of the libraries.
for unused in 'jobcomp_[ek]' acct_gather_profile_hdf5 acct_gather_profile_influxdb acct_gather_energy_ipmi auth_jwt mysql mpi_pmix lua openapi_ rest_auth_; do
  find "$kit$plugins" -name "*$unused*" -delete
done

# All libraries that these load, but glibc's and the compiler's own, of which the other machine has newer ones.
find "$kit" -type f \( -perm -u+x -o -name '*.so*' \) | while read -r file; do LD_LIBRARY_PATH=$kit$plugins ldd "$file" 2>/dev/null || true; done |
  awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u |
  grep -vE '^(libc|libm|libpthread|libdl|librt|libresolv|ld-linux.*|libutil|libanl|libgcc_s|libstdc\+\+)\.so' |
  while read -r name path; do cp -L "$path" "$libraries/$name"; done
find "$kit" -type f -perm -u+x -exec strip --strip-unneeded {} + 2>/dev/null || true
tar -C "$kit" -cJf "$OUT/system.tar.xz" .
tar -C "$PROJECT" --exclude=./.git --exclude=./.venv --exclude=__pycache__ --exclude=./runs --exclude='./.*_cache' -czf "$OUT/project.tgz" .
[ -z "$WHEELS" ] || { mkdir -p "$OUT/wheels"; cp -u "$WHEELS"/*.whl "$OUT/wheels/"; }
du -sh "$OUT"
