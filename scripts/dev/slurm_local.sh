#!/usr/bin/env bash
# Slurm for real, on this machine: a one-node cluster, a sweep of two cells through submitit, one
# job (bn) hit by scancel --signal=USR1, the other by the time limit of one minute; both must be
# requeued, finish, and be bit for bit what they are undisturbed.
#
#   sudo scripts/dev/slurm_local.sh        some four minutes; needs root, installs slurm-wlm and munge
#   EPOCHS=30 scripts/dev/slurm_local.sh   on a machine so fast that no job meets its time limit
#   scripts/dev/slurm_local.sh check       only says whether it could run here, and why not
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
mkdir "$WORK/state" "$WORK/spool"
PIDS=()
end() {
  status=$?
  [ $status = 0 ] || tail -n 40 "$WORK"/*.log "$WORK"/runs/.slurm/*/*.out 2>/dev/null || true
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
SlurmctldPort=36817
SlurmdPort=36818
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
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$WORK/slurm.conf

runuser -u munge -- mungekey --create --keyfile="$WORK/key/munge.key"
runuser -u munge -- munged --foreground --key-file="$WORK/key/munge.key" \
  --socket="$WORK/munge/socket" --pid-file="$WORK/munge/pid" --log-file="$WORK/munge/log" \
  --seed-file="$WORK/munge/seed" &
PIDS+=($!)
for _ in $(seq 50); do [ -S "$WORK/munge/socket" ] && break; sleep 0.1; done
slurmctld -D > "$WORK/slurmctld.log" 2>&1 &
PIDS+=($!)
slurmd -D -N "$HOST" > "$WORK/slurmd.log" 2>&1 &
PIDS+=($!)
for _ in $(seq 60); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
sinfo

sweep() {
  "$PYTHON" "$ROOT/train.py" -m norm=bn,gn batch=8x8 data=digits model=resnet14_mini \
    "trainer.epochs=${EPOCHS:-14}" trainer.device=cpu "$@"
}
rows() { wc -l 2>/dev/null < "$WORK/runs/digits/resnet14_mini/$1/8x8/seed0/metrics.jsonl" || echo 0; }

echo "undisturbed:"
sweep hydra/launcher=local runs_dir="$WORK/undisturbed" | tail -n 4

echo "through Slurm:"
sweep hydra/launcher=submitit_slurm runs_dir="$WORK/runs" hydra.launcher.gpus_per_node=null \
  hydra.launcher.cpus_per_task=1 hydra.launcher.timeout_min=1 hydra.launcher.signal_delay_s=10 \
  > "$WORK/sweep.log" 2>&1 &
SWEEP=$!
PIDS+=("$SWEEP")
until [ "$(rows bn)" -ge 2 ]; do kill -0 "$SWEEP"; sleep 0.2; done
JOB=$(squeue -h -r -o %F | head -n 1)
echo "scancel --signal=USR1 ${JOB}_0"
scancel --signal=USR1 "${JOB}_0"
wait "$SWEEP"
grep -v -i sacct "$WORK/sweep.log" | grep -v "accounting storage is disabled"

"$PYTHON" - "$WORK" "$ROOT/scripts/dev" <<'CHECK'
import json, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
from kill_test import differences

work, failed = Path(sys.argv[1]), False
for norm in ("bn", "gn"):
    cell = Path("digits", "resnet14_mini", norm, "8x8", "seed0")
    training = json.loads((work / "runs" / cell / "result.json").read_text())["training"]
    found = differences(work / "undisturbed" / cell, work / "runs" / cell)
    starts = len(training["world_sizes"])
    print(f"{norm}: {starts} starts, {'; '.join(found) or 'the same as undisturbed'}")
    failed |= bool(found) or starts < 2
sys.exit(failed)
CHECK
