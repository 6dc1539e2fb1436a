"""Many jobs: read from one TOML file, planned from headers, run side by side within a budget of memory and disk.

In: a jobs file, and a `concurrent.futures.Executor` that runs one function: processes of this machine, one for each job
(`ProcessPerJob`), or a Dask cluster (`cluster`).  Out: one `Outcome` for each job, whatever became of it.  There is no
database: what is done already is what `flow.package` recognises by the reports beside the publications.
"""

from pipeline.batch._cluster import cluster
from pipeline.batch._jobs import read_jobs
from pipeline.batch._processes import ProcessPerJob
from pipeline.batch._run import Budget, Outcome, run_jobs, summary
from pipeline.batch._tasks import Task, plan_tasks

__all__ = ["Budget", "Outcome", "ProcessPerJob", "Task", "cluster", "plan_tasks", "read_jobs", "run_jobs", "summary"]
