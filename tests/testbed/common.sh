# The other scripts source this file. ROOT is the directory with everything of one part of the test bed.

alive() { # PID: is there such a process, and is it not a zombie?
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  [ "${stat%% *}" != Z ]
}

ours() { # PID: does its command line or its environment name our ROOT? A recorded pid may have been reused since.
  alive "$1" && grep -qaF -e "$ROOT" "/proc/$1/cmdline" "/proc/$1/environ" 2>/dev/null
}

stop_recorded() { # SIGNAL PIDFILE...: signal each of our recorded processes, wait up to 5 s, kill the rest
  local signal=$1 file pid pids=() left
  shift
  for file in "$@"; do
    [ -s "$file" ] || continue
    pid=$(head -n 1 "$file")
    ours "$pid" && kill "-$signal" "$pid" 2>/dev/null && pids+=("$pid")
  done
  for _ in $(seq 1 100); do
    left=0
    for pid in "${pids[@]}"; do alive "$pid" && left=1; done
    [ $left = 0 ] && return 0
    sleep 0.05
  done
  for pid in "${pids[@]}"; do alive "$pid" && kill -KILL "$pid" 2>/dev/null; done
  return 0
}

wait_for() { # SECONDS COMMAND...: until the command succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}

sshd_options() { # the lines that every sshd of the test bed shares; $1: file of authorized keys
  cat <<CONF
AuthorizedKeysFile $1
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
MaxStartups 512:30:1024
MaxSessions 256
UseDNS no
PrintMotd no
Subsystem sftp internal-sftp
CONF
}

ssh_client_options() { # the lines that end every ssh configuration of the test bed; $1: directory of key and known_hosts
  cat <<CONF
Host *
  User root
  IdentityFile $1/id_ed25519
  IdentitiesOnly yes
  UserKnownHostsFile $1/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  KexAlgorithms curve25519-sha256
  BatchMode yes
  ConnectTimeout 5
  LogLevel ERROR
CONF
}
