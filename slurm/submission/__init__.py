"""Before a job starts: sbatch once, and finding the job of a run."""
