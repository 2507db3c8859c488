"""A Dask cluster of Slurm jobs, for `make sweep ... SCHEDULER=scheduler.json`. Runs on the login node.

Each job is one worker, which runs a cell on each of its GPUs. A job that was killed, or reached its time
limit, is replaced. Ctrl-C cancels all of them; so does an hour without work.
"""

import argparse
import shlex
import signal
import subprocess
import sys
import threading
import time

import dask
from dask_jobqueue import SLURMCluster


def cluster_of(args: argparse.Namespace) -> SLURMCluster:
    cells = args.cells or max(1, args.gpus)
    resources = ["--resources", f"GPU={args.gpus}"] if args.gpus else []
    # Dask would start each worker, and so its cells, with one thread for these libraries.
    threads = max(1, args.cores // cells)
    exports = [f"export {library}_NUM_THREADS={threads}" for library in ("OMP", "MKL", "OPENBLAS")]
    # To end a job, Slurm sends all its processes SIGTERM, and a cell saves; but once the job's shell has
    # ended, Slurm kills what is left. So the shell outlives SIGTERM and its worker, for a moment. (Dask's own
    # means, --lifetime, does not let a cell save: see the README.)
    patience = "trap : TERM; trap 'sleep 10' EXIT"
    return SLURMCluster(
        job_name="ikdlib",
        queue=args.partition,
        account=args.account,
        walltime=args.walltime,
        memory=args.memory,
        job_cpu=args.cores,  # what Slurm reserves ...
        cores=cells,  # ... and the worker's threads: each waits for one cell
        processes=1,
        python=shlex.quote(sys.executable),  # this environment, which the nodes see under the same path
        # Unless told, workers and scheduler serve their status pages to every network.
        worker_extra_args=[*resources, "--dashboard-address", "127.0.0.1:0"],
        death_timeout="120s",  # a job that starts when this program is gone ends after that
        job_extra_directives=[f"--gres=gpu:{args.gpus}"] * bool(args.gpus) + args.directive,
        job_script_prologue=[*args.setup, *exports, patience],
        log_directory=args.logs,
        interface=args.interface,
        scheduler_options={
            "scheduler_file": None if args.show else args.scheduler_file,
            "dashboard_address": "127.0.0.1:8787",
        },
        silence_logs="warning",
    )


def minutes_idle(cluster: SLURMCluster) -> float:
    since = cluster.scheduler.check_idle()
    return (time.time() - since) / 60 if since else 0.0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    say = made.add_argument
    say("--interface", required=True, help="network shared with the compute nodes: see `ip -br address`")
    say("--jobs", type=int, default=1, help="so many jobs at once (default 1)")
    say("--cores", type=int, default=4, help="CPU cores of a job (default 4)")
    say("--memory", default="16GiB", help="memory of a job (default 16GiB)")
    say("--gpus", type=int, default=1, help="GPUs of a job; 0: none (default 1)")
    say("--cells", type=int, default=0, help="cells at once in a job (default: one on each GPU)")
    say("--walltime", default="04:00:00", help="time limit of a job (default 04:00:00)")
    say("--partition", help="Slurm partition (default: the cluster's)")
    say("--account", help="Slurm account (default: yours)")
    say("--directive", action="append", default=[], help="a further #SBATCH option: --directive=--qos=low")
    say("--setup", action="append", default=[], help="a line of shell before the worker: 'module load cuda'")
    say("--scheduler-file", default="scheduler.json", help="to write for the sweep (default scheduler.json)")
    say("--logs", default="slurm-logs", help="folder of the jobs' output (default slurm-logs)")
    say("--idle", type=float, default=60, help="end after so many minutes without a cell (default 60)")
    say("--show", action="store_true", help="print the job script, submit nothing")
    return made


def main() -> None:
    args = parser().parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    # Dask gives a task up once three workers have died with it. Here Slurm ends them, as it ends any job.
    dask.config.set({"distributed.scheduler.allowed-failures": 100})
    with cluster_of(args) as cluster:
        if args.show:
            print(cluster.job_script())
            return
        tried = subprocess.run(["sbatch", "--test-only"], input=cluster.job_script(), text=True)
        if tried.returncode:
            sys.exit("Slurm refuses such a job; --show prints its script")
        # Not cluster.scale(): that would not replace a job that ended.
        cluster.adapt(minimum_jobs=args.jobs, maximum_jobs=args.jobs, interval="5s")
        print(f"scheduler {cluster.scheduler_address} ({args.scheduler_file}); Ctrl-C ends it", flush=True)
        while not stop.wait(1) and minutes_idle(cluster) < args.idle:
            pass
        why = "interrupted" if stop.is_set() else f"no cell for {args.idle:g} minutes"
        print(f"{why}: cancelling the jobs", flush=True)


if __name__ == "__main__":
    main()
