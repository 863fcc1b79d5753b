# Slurm lets a requeued job wait two minutes. That may be changed only when this script has left and the job is pending
# again: another job, of a second, does it.
sbatch --quiet --job-name="ropewalk-hurry-$SLURM_JOB_ID" --nodes=1 --ntasks=1 --time=2 --output=/dev/null @options@ <<'SKIP_DELAY'
#!/bin/bash
job=${SLURM_JOB_NAME##*-}
for _ in $(seq 200); do
  # of an array whose id this job has too, squeue tells all elements
  case $(squeue --noheader --states=all --jobs="$job" --format='%A %T' | sed -n "s/^$job //p") in
    PENDING) exec scontrol update JobId="$job" StartTime=now+2 ;;   # in the same second it would be killed as it starts
    RUNNING | COMPLETED | CANCELLED) exit ;;   # it runs again, or is over
    *) sleep 0.5 ;;   # it is still leaving, or the controller is busy
  esac
done
SKIP_DELAY
