#!/bin/bash
# Runs on a node other than the first of an elastic run. If the first node dies, Slurm ends the job script with it but keeps
# the job (--no-kill) and requeues nothing. Usage: guard.sh HEARTBEAT, a file that the coordinator touches.
heartbeat=$1 last= still=0
while sleep 5; do
  now=$(stat -c %Y.%y "$heartbeat" 2>/dev/null)
  if [ "$now" != "$last" ]; then last=$now still=0; continue; fi
  still=$((still + 5))
  [ "$still" -ge @patience@ ] || continue
  said=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || continue   # the controller does not answer
  host=$(sed -n 's/.* BatchHost=\([^ ]*\).*/\1/p' <<< "$said")
  nodes=$(sed -n 's/.* NodeList=\([^ ]*\).*/\1/p' <<< "$said")
  scontrol show hostnames "$nodes" | grep -qxF "$host" && continue               # the coordinator is only slow
  echo "the first node, $host, is lost: requeueing"
  trap '' TERM   # the requeue ends this step too, before its last line
  scontrol requeue "$SLURM_JOB_ID" || continue
@skip_requeue_delay@
  exit 0
done
