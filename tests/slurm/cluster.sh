#!/usr/bin/env bash
# A SLURM cluster of one node on this machine, in a folder of its own, for tests/test_slurm.py and for trying things:
#
#     apt-get install --no-install-recommends slurmctld slurmd slurm-client munge    # Debian 12: SLURM 22.05
#     tests/slurm/cluster.sh start DIR         # prints what to put into the environment: export SLURM_CONF=...
#     tests/slurm/cluster.sh status DIR
#     tests/slurm/cluster.sh stop DIR          # cancels its jobs, ends its daemons; DIR stays (logs)
#
# Two CPUs are claimed, whatever the machine has. Two partitions share them: `low` (default; jobs are requeued when
# `high` wants the CPUs) and `high`; both end jobs within KillWait=20 seconds of the first SIGTERM. `grace` is as `low`
# with ten seconds between notice and requeue. There is no accounting, no cgroup and no systemd: it runs in a
# container. It has a munge key and socket, ports and a slurm.conf of its own, and touches nothing of a SLURM that is
# already here. Daemons run as the user who starts it; that user's jobs are the only ones it takes.
set -euo pipefail

usage() { sed -n '2,7p' "$0" >&2; exit 2; }
[ $# -eq 2 ] || usage
mkdir -p "$2"
dir=$(cd "$2" && pwd -P)
conf=$dir/slurm.conf
export SLURM_CONF=$conf PATH=$PATH:/usr/sbin:/sbin

alive() { [ -f "$dir/$1.pid" ] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

configure() {
    local me host
    me=$(id -un) host=$(hostname -s)
    mkdir -p "$dir/state" "$dir/spool"
    dd if=/dev/urandom of="$dir/munge.key" bs=1024 count=1 status=none
    chmod 600 "$dir/munge.key"
    chmod 755 "$dir"
    cat > "$dir/cgroup.conf" <<CGROUP
CgroupAutomount=no
IgnoreSystemd=yes
CGROUP
    cat > "$conf" <<CONF
ClusterName=rpbench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=20
MinJobAge=60
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 RealMemory=1024 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=grace Nodes=$host PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=$host PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

start() {
    for program in munged slurmctld slurmd sinfo; do
        command -v "$program" >/dev/null || { echo "no $program here: see the head of $0" >&2; exit 1; }
    done
    if alive slurmctld && alive slurmd; then echo "export SLURM_CONF=$conf"; return; fi
    configure
    munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
        --log-file="$dir/munged.log" --seed-file="$dir/munged.seed" --num-threads=2
    slurmctld -c
    slurmd -c
    for _ in $(seq 100); do
        case $(sinfo -h -p low -o %T 2>/dev/null) in idle*) echo "export SLURM_CONF=$conf"; return ;; esac
        sleep 0.2
    done
    echo "the node has not come up within 20 seconds: see $dir/slurmctld.log and $dir/slurmd.log" >&2
    stop
    exit 1
}

stop() {
    if alive slurmctld; then
        timeout 10 scancel --quiet --user="$(id -un)" || true
        for _ in $(seq 50); do [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break; sleep 0.5; done
    fi
    for daemon in slurmd slurmctld munged; do
        if alive $daemon; then kill "$(cat "$dir/$daemon.pid")"; fi
    done
    for _ in $(seq 50); do
        if ! alive slurmd && ! alive slurmctld && ! alive munged; then return; fi
        sleep 0.2
    done
    echo "daemons of $dir are still ending" >&2
}

case $1 in
    start) start ;;
    stop) stop ;;
    status) if alive slurmctld; then sinfo; squeue --array; else echo "not running"; exit 1; fi ;;
    *) usage ;;
esac
