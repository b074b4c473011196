#!/usr/bin/env bash
# Slurm for real, on this machine: a one-node cluster and three cells through submitit. One job is
# hit by scancel --signal=USR1, one by its time limit, one is preempted by a job of a
# higher partition (SIGTERM). All must be requeued, by Slurm's own records for that very reason,
# finish, and be bit for bit what they are undisturbed. Of one more sweep a job is cancelled: the
# other is waited for, and the sweep ends with 1.
#
#   sudo scripts/dev/slurm_local.sh    three to seven minutes; needs root, installs slurm-wlm and munge
#   scripts/dev/slurm_local.sh check   only says whether it could run here, and why not
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
export OMP_NUM_THREADS=1

cannot() { echo "skipped: $*"; exit 77; }
[ "$(id -u)" = 0 ] || cannot "needs root, to start slurmd and munged"
[ "$(uname)" = Linux ] || cannot "needs Linux"
"$PYTHON" -c "import hydra_plugins.hydra_submitit_launcher" 2>/dev/null \
  || cannot "needs the extra slurm: pip install -e '.[slurm]'"
if ! command -v slurmctld slurmd munged >/dev/null; then
  command -v apt-get >/dev/null || cannot "needs slurm-wlm and munge, and there is no apt-get"
  [ "${1:-}" = check ] || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || cannot "cannot install slurm-wlm, munge"
fi
[ "${1:-}" = check ] && { echo "can run"; exit 0; }

# munged wants a folder in which nobody else can write.
WORK=$(mktemp -d /run/slurm_local.XXXXXX)
chmod 755 "$WORK"
install -d -o munge -m 700 "$WORK/key"
install -d -o munge -m 755 "$WORK/munge"
mkdir -p "$WORK/state" "$WORK/spool" "$WORK/configs/norm" "$WORK/pauses"
for norm in BN GN SN; do
  sed "s/^name: .*/name: paused_${norm,,}/; s/^target: .*/target: paused.$norm/" \
    "$ROOT/configs/norm/${norm,,}.yaml" > "$WORK/configs/norm/paused_${norm,,}.yaml"
done
export PYTHONPATH=$ROOT/scripts/dev${PYTHONPATH:+:$PYTHONPATH}
PIDS=()
end() {
  status=$?
  [ $status = 0 ] || tail -n 40 "$WORK"/*.log "$WORK"/runs/.slurm/*/*.out 2>/dev/null || true
  if [ -e "$WORK/slurmctld.pid" ]; then # before the daemons, which would leave the jobs behind
    export SLURM_CONF=$WORK/slurm.conf
    scancel --full --signal=KILL --user=root 2>/dev/null || true
    scancel --user=root 2>/dev/null || true
    for _ in $(seq 100); do [ -n "$(squeue -h 2>/dev/null)" ] || break; sleep 0.2; done
  fi
  for ((i = ${#PIDS[@]} - 1; i >= 0; i--)); do kill "${PIDS[i]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$WORK"
}
trap end EXIT

HOST=$(hostname -s)
cat > "$WORK/slurm.conf" <<CONF
ClusterName=local
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmctldPort=$((10000 + $$ % 10000))
SlurmdPort=$((20000 + $$ % 10000))
AuthType=auth/munge
# A requeued job waits until its credential has expired: two minutes by default.
AuthInfo=socket=$WORK/munge/socket,cred_expire=5
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# What each job was told, and why.
SlurmctldDebug=debug
SlurmdDebug=debug
# Requeued jobs start again at once, not at the next full minute.
SchedulerParameters=sched_interval=2,bf_interval=2
# A minute more than the limit for a job to save and to be requeued, however slow the machine.
OverTimeLimit=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=20 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
export SLURM_CONF=$WORK/slurm.conf

runuser -u munge -- mungekey --create --keyfile="$WORK/key/munge.key"
runuser -u munge -- munged --foreground --key-file="$WORK/key/munge.key" \
  --socket="$WORK/munge/socket" --pid-file="$WORK/munge/pid" --log-file="$WORK/munge/log" \
  --seed-file="$WORK/munge/seed" > "$WORK/munged.log" 2>&1 &
PIDS+=($!)
for _ in $(seq 50); do [ -S "$WORK/munge/socket" ] && break; sleep 0.1; done
slurmctld -D > "$WORK/slurmctld.log" 2>&1 &
PIDS+=($!)
slurmd -D -N "$HOST" > "$WORK/slurmd.log" 2>&1 &
PIDS+=($!)
for _ in $(seq 60); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
sinfo

sweep() {
  "$PYTHON" "$ROOT/train.py" -m --config-dir "$WORK/configs" batch=8x8 data=digits \
    model=resnet14_mini trainer.epochs=2 trainer.log_every=1 trainer.device=cpu "$@"
}
through_slurm() {
  sweep hydra/launcher=submitit_slurm runs_dir="$WORK/runs" hydra.launcher.gpus_per_node=null \
    hydra.launcher.signal_delay_s=1 "$@"
}
rows() { wc -l 2>/dev/null < "$WORK/runs/digits/resnet14_mini/$1/8x8/seed0/metrics.jsonl" || echo 0; }
# The job of a cell: by its name, once it is there.
job() { squeue -h -r -n "$1" -o %i | head -n 1; }
await() { for _ in $(seq 4500); do eval "$1" && return; sleep 0.2; done; echo "not within a quarter of an hour: $1"; exit 1; }

for norm in BN GN SN; do
  # 17 layers pause in each of an epoch's 21 steps: it takes half a minute, and then its validation
  # waits until the job has met what it is to meet, however late that comes.
  echo 0.1 > "$WORK/pauses/$norm"
  echo / > "$WORK/pauses/$norm.held"
  partition=$([ $norm = SN ] && echo low || echo local)
  # Whatever else has ended, a job of five has no room beside SN's.
  cpus=$([ $norm = SN ] && echo 16 || echo 1)
  PAUSES="$WORK/pauses" through_slurm norm="paused_${norm,,}" hydra.launcher.name="$norm" \
    hydra.launcher.timeout_min=30 hydra.launcher.partition="$partition" \
    hydra.launcher.cpus_per_task="$cpus" \
    > "$WORK/sweep_$norm.log" 2>&1 &
  PIDS+=($!)
  eval "SWEEP_$norm=$!"
done
through_slurm norm=paused_bn,paused_gn seed=1 trainer.max_steps=2 evaluate=false \
  hydra.launcher.name=LOST hydra.launcher.timeout_min=30 hydra.launcher.cpus_per_task=1 > "$WORK/sweep_LOST.log" 2>&1 &
SWEEP_LOST=$!
PIDS+=("$SWEEP_LOST")
await '[ -n "$(job LOST)" ]'
LOST=$(job LOST)
echo "scancel $LOST"
scancel "$LOST"
await '[ -n "$(job BN)" ] && [ -n "$(job GN)" ] && [ -n "$(job SN)" ]'
BN=$(job BN) GN=$(job GN) SN=$(job SN)

# Of a job that runs: its whole minutes so far (h:mm:ss) and one.
this_minute() { squeue -h -j "$1" -o %M | awk -F: '{ for (i = 1; i < NF; i++) m = 60 * m + $i; print m + 1 }'; }
requeued() { scontrol show job "$1" | grep -q "Restarts=[1-9]"; }

await '[ "$(rows paused_bn)" -ge 2 ]'
echo "scancel --signal=USR1 $BN"
scancel --signal=USR1 "$BN"
# Not sooner: on a busy machine a minute's limit is reached before the first step.
await '[ "$(rows paused_gn)" -ge 2 ]'
echo "$GN may run until its $(this_minute "$GN"). minute ends"
scontrol update JobId="$GN" TimeLimit="$(this_minute "$GN")"
await '[ "$(rows paused_sn)" -ge 2 ]'
echo "a job of a higher partition takes the place of $SN"
sbatch -p high -N 1 -n 5 -o /dev/null --wrap "sleep 1"

# Meanwhile, and without pauses.
sweep hydra/launcher=local runs_dir="$WORK/undisturbed" sweep.slots=1 \
  norm=paused_bn,paused_gn,paused_sn > "$WORK/undisturbed.log" 2>&1 &
UNDISTURBED=$!
PIDS+=("$UNDISTURBED")

# What each job was meant to meet it has met: now they may come to their end.
await "requeued $GN"
scontrol update JobId="$GN" TimeLimit=30
rm "$WORK"/pauses/GN*
for job in BN SN; do await "requeued ${!job}"; rm "$WORK"/pauses/"$job"*; done
wait "$UNDISTURBED"; wait "$SWEEP_BN"; wait "$SWEEP_GN"; wait "$SWEEP_SN"
code=0
wait "$SWEEP_LOST" || code=$?
tail -n 4 "$WORK/sweep_LOST.log"
if [ $code != 1 ] || ! grep -q "job $LOST: ended without a result" "$WORK/sweep_LOST.log" \
  || ! grep -q "2 cells: .*1 finished" "$WORK/sweep_LOST.log"; then
  echo "a sweep one of whose jobs was cancelled ended with $code"
  exit 1
fi
"$PYTHON" "$ROOT/scripts/dev/slurm_check.py" "$WORK" "$BN" "$GN" "$SN"
