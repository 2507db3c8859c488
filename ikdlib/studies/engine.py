"""Where cells run: the local pool, or an existing Dask cluster, behind one interface.

An engine is a ``concurrent.futures`` executor with ``slots`` (cells at once), ``ahead`` (cells it is given
beyond those), ``fewer()`` (half as many from now on), ``stop()`` (running cells save, the rest is not
started), ``environment`` and ``owner`` of its cells.
"""

from __future__ import annotations

from pathlib import Path

from ikdlib.studies.pool import LocalPool, share_out


def open_engine(
    scheduler: str, jobs: int, device: str, count: int, results: Path, data: str = "", folder: str = ""
):
    """The engine for ``count`` cells; a cluster is looked at before the first of them.

    Args:
        scheduler: ``tcp://HOST:PORT``, a scheduler file, or "" for this machine.
        jobs: cells at once here, or on each GPU of the cluster; 0 chooses.
        results: the folder that all cells share.
        data: name of the data set they need, where that is known, and ``folder`` where it lies.

    Raises:
        IkdError: no scheduler answers, or a worker lacks the package, the results folder or the data.
    """
    if not scheduler:
        return LocalPool(share_out(jobs, device, count))
    from ikdlib.studies.cluster import Cluster

    cluster = Cluster(scheduler, per_gpu=jobs or 1)
    try:
        cluster.check(results, data, folder)
    except BaseException:
        cluster.shutdown()
        raise
    return cluster
