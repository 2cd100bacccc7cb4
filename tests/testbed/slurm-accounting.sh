#!/usr/bin/env bash
# Accounting for slurm-up.sh: a private MariaDB (socket authentication, no password) and slurmdbd.
# usage: slurm-accounting.sh ROOT BASE_PORT
set -euo pipefail
ROOT=${1:?} BASE_PORT=${2:?}
. "$(cd "$(dirname "$0")" && pwd)/common.sh"
db=$ROOT/mysql
mkdir -p "$db"
chown mysql:mysql "$db"
mariadb-install-db --no-defaults --user=mysql --datadir="$db/data" --auth-root-authentication-method=socket \
  --auth-root-socket-user=root --skip-test-db >"$ROOT/log/mysql-install.log" 2>&1
setsid mariadbd --no-defaults --user=mysql --datadir="$db/data" --socket="$db/mysqld.sock" --pid-file="$db/mysqld.pid" \
  --bind-address=127.0.0.1 --port=$((BASE_PORT + 2)) --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=2 \
  --innodb-lock-wait-timeout=900 --skip-log-bin --log-error="$db/mysqld.err" </dev/null >/dev/null 2>&1 &
sql() { mariadb --no-defaults -u root -S "$db/mysqld.sock" -e "$1"; }
wait_for 20 sql 'select 1'
sql "CREATE DATABASE slurm_acct_db;
     CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'x'; CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY 'x';
     GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost', 'slurm'@'127.0.0.1'; FLUSH PRIVILEGES"
cat > "$ROOT/etc/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((BASE_PORT + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=$ROOT/munge-run/munge.socket
PidFile=$ROOT/run/slurmdbd.pid
LogFile=$ROOT/log/slurmdbd.log
DebugLevel=info
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((BASE_PORT + 2))
StorageUser=slurm
StoragePass=x
StorageLoc=slurm_acct_db
CONF
chmod 600 "$ROOT/etc/slurmdbd.conf"
export SLURM_CONF=$ROOT/etc/slurm.conf
slurmdbd
wait_for 20 sacctmgr -n -i list cluster
for entity in "cluster zlaunch" "account lab Cluster=zlaunch" "user root Account=lab Cluster=zlaunch"; do
  # shellcheck disable=SC2086 # the words are sacctmgr's arguments
  sacctmgr -i add $entity >/dev/null
done
