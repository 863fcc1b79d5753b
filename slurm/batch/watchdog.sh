#!/bin/bash
# On another node than the first of an elastic run: when the first one dies, Slurm ends the job script with it, leaves
# the job (--no-kill) and requeues nothing. Usage: guard.sh HEARTBEAT, a file that the coordinator touches.
heartbeat=$1 last= still=0
while sleep 5; do
  now=$(stat -c %Y.%y "$heartbeat" 2>/dev/null)
  if [ "$now" != "$last" ]; then last=$now still=0; continue; fi
  still=$((still + 5))
  [ "$still" -ge @patience@ ] || continue
  said=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || continue   # the controller is away
  host=$(sed -n 's/.* BatchHost=\([^ ]*\).*/\1/p' <<< "$said")
  nodes=$(sed -n 's/.* NodeList=\([^ ]*\).*/\1/p' <<< "$said")
  scontrol show hostnames "$nodes" | grep -qxF "$host" && continue               # it is only slow
  echo "the first node, $host, is lost: requeueing"
  trap '' TERM   # it ends this step too, and there is a line more to do
  scontrol requeue "$SLURM_JOB_ID" || continue
@skip_requeue_delay@
  exit 0
done
