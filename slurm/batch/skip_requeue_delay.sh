# Slurm lets a requeued job wait for two minutes. The start time can be changed only after this script has exited and the job
# is pending again, so a small separate job does it.
sbatch --quiet --job-name="ropewalk-hurry-$SLURM_JOB_ID" --nodes=1 --ntasks=1 --time=2 --output=/dev/null @options@ <<'SKIP_DELAY'
#!/bin/bash
job=${SLURM_JOB_NAME##*-}
for _ in $(seq 200); do
  # if the job id is also an array's, squeue lists all its elements
  case $(squeue --noheader --states=all --jobs="$job" --format='%A %T' | sed -n "s/^$job //p") in
    PENDING) exec scontrol update JobId="$job" StartTime=now+2 ;;   # a start in the same second would kill the job
    RUNNING | COMPLETED | CANCELLED) exit ;;   # the job runs again, or is over
    *) sleep 0.5 ;;   # the job is still ending, or the controller is busy
  esac
done
SKIP_DELAY
