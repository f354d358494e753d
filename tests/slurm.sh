#!/usr/bin/env bash
# One Slurm node on loopback, for tests: slurm.sh start|stop|status FOLDER. Afterwards SLURM_CONF=FOLDER/slurm.conf sbatch ...
# Needs Debian's slurmctld, slurmd and munge; no systemd, no accounting. Exit code 77: it can't be had here, and why.
set -uo pipefail

cannot() { echo "no Slurm here: $*" >&2; exit 77; }
command=${1:-}; [ -n "${2:-}" ] || { echo "usage: $0 start|stop|status FOLDER" >&2; exit 2; }
mkdir -p "$2" && folder=$(cd "$2" && pwd) || exit 2
export SLURM_CONF=$folder/slurm.conf PATH=$PATH:/usr/sbin:/sbin

own() { # the process of this folder's daemon: its id must still be that of the program
  local pid; pid=$(cat "$folder/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] && echo "$pid"
}

status() {
  local missing=""
  for name in munged slurmctld slurmd; do own $name >/dev/null || missing+=" $name"; done
  [ -z "$missing" ] || { echo "not running:$missing"; return 1; }
  timeout 5 sinfo --noheader --format='%n %T, %c cores' 2>/dev/null | grep -E 'idle|mixed|allocated'
}

stop() {
  timeout 5 scancel --user="$(id -un)" 2>/dev/null
  for _ in $(seq 50); do # what a job leaves running is killed by the daemons, so they outlive it
    [ -n "$(timeout 5 squeue --noheader --states=all --format=%t 2>/dev/null | grep -E 'R|CG|PD')" ] || break; sleep 0.2
  done
  for name in slurmd slurmctld munged; do
    pid=$(own $name) || continue
    kill "$pid"
    for _ in $(seq 50); do own $name >/dev/null || break; sleep 0.1; done
    own $name >/dev/null && kill -9 "$pid"
    rm -f "$folder/$name.pid"
  done
  return 0
}

start() {
  status >/dev/null && { status; return 0; }
  for name in munged slurmctld slurmd sbatch; do
    command -v $name >/dev/null || cannot "$name is not installed (apt-get install slurmctld slurmd munge)"
  done
  local user host ports; user=$(id -un) host=$(hostname -s)
  ports=$(python3 -c 'import socket; s = [socket.create_server(("127.0.0.1", 0)) for _ in "ab"]
print(*(x.getsockname()[1] for x in s))') || cannot "no free ports"
  chmod 755 "$folder"; mkdir -p "$folder/state" "$folder/spool"
  (umask 077; head -c 128 /dev/urandom >"$folder/munge.key")
  cat >"$SLURM_CONF" <<CONF
ClusterName=tests
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=$(command -v true)
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,sched_min_interval=0
ReturnToService=2
KillWait=2
MinJobAge=60
SlurmctldTimeout=30
SlurmdTimeout=30
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" 2>"$folder/start.log" || fail munged
  slurmctld -c >>"$folder/start.log" 2>&1 || fail slurmctld
  slurmd -N "$host" >>"$folder/start.log" 2>&1 || fail slurmd
  for _ in $(seq 100); do status && return 0; sleep 0.2; done >"$folder/status.log"
  fail "the node"
}

fail() {
  local why; why=$(grep -hiE 'error|fatal|invalid' "$folder"/{slurmctld,slurmd,munged,start}.log 2>/dev/null | tail -n 1)
  stop
  cannot "$1 does not start: ${why:-no message}"
}

case $command in
  start) start && status ;;
  stop) stop ;;
  status) status ;;
  *) echo "usage: $0 start|stop|status FOLDER" >&2; exit 2 ;;
esac
