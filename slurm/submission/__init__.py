"""Before a job starts: a submission that makes one job."""
