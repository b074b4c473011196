#!/usr/bin/env bash
# Runs a real one-node Slurm cluster on this machine, and three runs through submitit. One job gets
# scancel --signal=USR1, one reaches its time limit, and one is preempted by a job of a higher
# partition (SIGTERM). Slurm must requeue each for that reason, as its records show, and each must
# finish bit for bit as an uninterrupted run. In one more sweep a job is cancelled: the sweep waits for
# its other job and ends with 1.
#
#   sudo tests/sweeps/slurm_local.sh    three to seven minutes; needs root, installs slurm-wlm and munge
#   tests/sweeps/slurm_local.sh check   only reports whether it can run here
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
  command -v apt-get >/dev/null || cannot "needs slurm-wlm and munge, or apt-get to install them"
  [ "${1:-}" = check ] || { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends slurm-wlm munge; } >/dev/null 2>&1 || cannot "cannot install slurm-wlm, munge"
fi
[ "${1:-}" = check ] && { echo "can run"; exit 0; }

# munged requires a folder that only its user can write.
WORK=$(mktemp -d /run/slurm_local.XXXXXX)
chmod 755 "$WORK"
install -d -o munge -m 700 "$WORK/key"
install -d -o munge -m 755 "$WORK/munge"
mkdir -p "$WORK/state" "$WORK/spool" "$WORK/configs/norm" "$WORK/pauses"
for norm in BN GN SN; do
  sed "s/^name: .*/name: slow_${norm,,}/; s/^target: .*/target: slow_norms.$norm/" \
    "$ROOT/configs/norm/${norm,,}.yaml" > "$WORK/configs/norm/slow_${norm,,}.yaml"
done
export PYTHONPATH=$ROOT/tests${PYTHONPATH:+:$PYTHONPATH}
PIDS=()
end() {
  status=$?
  [ $status = 0 ] || tail -n 40 "$WORK"/*.log "$WORK"/runs/.slurm/*/*.out 2>/dev/null || true
  if [ -e "$WORK/slurmctld.pid" ]; then # before the daemons end, which would leave the jobs behind
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
# A requeued job waits until its credential expires: two minutes by default.
AuthInfo=socket=$WORK/munge/socket,cred_expire=5
StateSaveLocation=$WORK/state
SlurmdSpoolDir=$WORK/spool
SlurmctldPidFile=$WORK/slurmctld.pid
SlurmdPidFile=$WORK/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# Log the signals of each job and their reasons.
SlurmctldDebug=debug
SlurmdDebug=debug
# Restart requeued jobs at once, not at the next full minute.
SchedulerParameters=sched_interval=2,bf_interval=2
# One more minute than the limit, for a job to save and be requeued on a slow machine.
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
# The id of the job of this name, once it exists.
job() { squeue -h -r -n "$1" -o %i | head -n 1; }
await() { for _ in $(seq 4500); do eval "$1" && return; sleep 0.2; done; echo "not within a quarter of an hour: $1"; exit 1; }

for norm in BN GN SN; do
  # 17 layers pause in each of the 21 steps of an epoch, which takes half a minute. Its validation
  # then waits until the job has been signaled, however late.
  echo 0.1 > "$WORK/pauses/$norm"
  echo / > "$WORK/pauses/$norm.held"
  partition=$([ $norm = SN ] && echo low || echo local)
  # A job of five CPUs never fits beside SN's.
  cpus=$([ $norm = SN ] && echo 16 || echo 1)
  PAUSES="$WORK/pauses" through_slurm norm="slow_${norm,,}" hydra.launcher.name="$norm" \
    hydra.launcher.timeout_min=30 hydra.launcher.partition="$partition" \
    hydra.launcher.cpus_per_task="$cpus" \
    > "$WORK/sweep_$norm.log" 2>&1 &
  PIDS+=($!)
  eval "SWEEP_$norm=$!"
done
through_slurm norm=slow_bn,slow_gn seed=1 trainer.max_steps=2 evaluate=false \
  hydra.launcher.name=LOST hydra.launcher.timeout_min=30 hydra.launcher.cpus_per_task=1 > "$WORK/sweep_LOST.log" 2>&1 &
SWEEP_LOST=$!
PIDS+=("$SWEEP_LOST")
await '[ -n "$(job LOST)" ]'
LOST=$(job LOST)
echo "scancel $LOST"
scancel "$LOST"
await '[ -n "$(job BN)" ] && [ -n "$(job GN)" ] && [ -n "$(job SN)" ]'
BN=$(job BN) GN=$(job GN) SN=$(job SN)

# The minutes that a job has run so far (h:mm:ss), rounded up.
this_minute() { squeue -h -j "$1" -o %M | awk -F: '{ for (i = 1; i < NF; i++) m = 60 * m + $i; print m + 1 }'; }
requeued() { scontrol show job "$1" | grep -q "Restarts=[1-9]"; }

await '[ "$(rows slow_bn)" -ge 2 ]'
echo "scancel --signal=USR1 $BN"
scancel --signal=USR1 "$BN"
# Not earlier: on a busy machine the job would reach a limit of one minute before its first step.
await '[ "$(rows slow_gn)" -ge 2 ]'
echo "scontrol update JobId=$GN TimeLimit=$(this_minute "$GN")"
scontrol update JobId="$GN" TimeLimit="$(this_minute "$GN")"
await '[ "$(rows slow_sn)" -ge 2 ]'
echo "a job of a higher partition preempts $SN"
sbatch -p high -N 1 -n 5 -o /dev/null --wrap "sleep 1"

# The uninterrupted runs, at the same time and without pauses.
sweep hydra/launcher=local runs_dir="$WORK/uninterrupted" sweep.slots=1 \
  norm=slow_bn,slow_gn,slow_sn > "$WORK/uninterrupted.log" 2>&1 &
UNINTERRUPTED=$!
PIDS+=("$UNINTERRUPTED")

# Let each job finish once it has been requeued.
await "requeued $GN"
scontrol update JobId="$GN" TimeLimit=30
rm "$WORK"/pauses/GN*
for job in BN SN; do await "requeued ${!job}"; rm "$WORK"/pauses/"$job"*; done
wait "$UNINTERRUPTED"; wait "$SWEEP_BN"; wait "$SWEEP_GN"; wait "$SWEEP_SN"
code=0
wait "$SWEEP_LOST" || code=$?
tail -n 4 "$WORK/sweep_LOST.log"
if [ $code != 1 ] || ! grep -q "job $LOST: ended without a result" "$WORK/sweep_LOST.log" \
  || ! grep -q "2 runs: .*1 finished" "$WORK/sweep_LOST.log"; then
  echo "the sweep with a cancelled job ended with $code"
  exit 1
fi
"$PYTHON" "$ROOT/tests/sweeps/slurm_check.py" "$WORK" "$BN" "$GN" "$SN"
