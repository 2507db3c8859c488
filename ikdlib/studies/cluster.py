"""An existing Dask cluster as an engine: the same interface as the local pool, on as many machines as it has.

However it was deployed (dask-jobqueue on Slurm, dask-kubernetes, SSH, by hand), it is reached by the address
of its scheduler or by a scheduler file. A worker that is lost is Dask's to replace: it gives the cell to
another one, and the cell goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import ikdlib
from ikdlib import files, status
from ikdlib.errors import IkdError
from ikdlib.studies import children
from ikdlib.studies.cell import code_digest
from ikdlib.studies.workers import DATA_SECONDS, RESOURCE, Call, digest_of, inspect

if TYPE_CHECKING:
    from distributed import Client

ANSWER_SECONDS = 10
"""How long a scheduler may take to answer, or a worker that has the package loaded."""
LOOK_SECONDS = 60
"""How long a worker may take to say what it has: it loads the package, from a slow disk perhaps."""
FINEST = 2**20
"""Parts of a GPU are counted in such pieces: Dask adds and subtracts them, and sums of 1/3 are not exact."""


class Cluster(Executor):
    """Cells on the workers of a Dask scheduler: one for each of their threads, or for each share of a GPU.

    Args:
        scheduler: ``tcp://HOST:PORT``, or the path of a scheduler file.
        per_gpu: cells that share one GPU.

    Raises:
        IkdError: no answer, or it is no scheduler.
    """

    ahead = 1
    """Cells that wait at the scheduler: of a cluster that adapts its size, it shows that more would help."""

    def __init__(self, scheduler: str, per_gpu: int = 1):
        self.owner, self.code = uuid4().hex, code_digest()
        self._scheduler, self._per_gpu = scheduler, per_gpu
        self._client = _connect(scheduler)
        self._workers: dict[str, Any] = {}
        self._looked = -1.0
        self._stopped, self._told = False, set[str]()

    @property
    def environment(self) -> dict[str, str]:
        """What tells a cell its part of a GPU; Dask itself limits a worker's threads.

        What a child needs of the C library it is given once more: Dask gives its workers other values.
        """
        return {**children.ENVIRONMENT, status.GPU_SHARE: str(self._share)}

    @property
    def slots(self) -> int:
        """Cells the workers of this moment can do at once; 1 while there are none, so that one waits."""
        self._look()
        return max(1, sum(self._room(worker) for worker in self._workers.values()))

    @property
    def _share(self) -> float:
        return FINEST // self._per_gpu / FINEST

    @property
    def _gpus_offered(self) -> bool:
        return any(RESOURCE in worker["resources"] for worker in self._workers.values())

    def _look(self, every: float = 1.0) -> None:
        """See which workers there are; those that were there, where the scheduler does not answer in time."""
        if self._client.status != "running" or time.monotonic() - self._looked < every:
            return
        try:
            ask = self._client.scheduler.identity
            self._workers = self._client.sync(ask, callback_timeout=ANSWER_SECONDS)["workers"]
        except (OSError, AttributeError):  # it is going: the cells' futures say so
            pass
        self._looked = time.monotonic()

    def _room(self, worker: dict[str, Any]) -> int:
        if worker["status"] != "running":
            return 0
        if not self._gpus_offered:
            return worker["nthreads"]
        return min(worker["nthreads"], int(worker["resources"].get(RESOURCE, 0) / self._share))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        """As every executor's; the future is cancelled where the scheduler is gone."""
        if self._client.status not in ("running", "connecting"):
            gone: Future = Future()
            gone.cancel()
            gone.set_running_or_notify_cancel()
            return gone
        self._look()
        wanted = {"resources": {RESOURCE: self._share}} if self._gpus_offered else {}
        # A scheduler unpickles what it is given, and need not have the package: this for it are bytes.
        call = pickle.dumps(Call(function, arguments, named))
        executor = self._client.get_executor(**wanted)
        return executor.submit(pickle.loads, call, key=f"cell-{uuid4().hex}")

    def fewer(self) -> None:
        """Half as many cells on each GPU from now on."""
        self._per_gpu = max(1, self._per_gpu // 2)

    def stop(self) -> None:
        """Ask all cells to save and end; start no more; return when that was said to every worker."""
        self._stopped = True
        self._look(every=0.0)
        new = self._workers.keys() - self._told
        self._told |= new
        self._ask(children.stop, self.owner, among=new)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster as it is; what has not ended is cancelled."""
        if self._stopped:
            self.stop()  # workers that came since may have been given what waited
        try:
            self._client.close(timeout=ANSWER_SECONDS)
        except (OSError, AssertionError):
            pass  # the scheduler is gone

    def check(self, results: Path, data: str = "", folder: str = "") -> None:
        """Look at every worker before the first cell: the package, the results folder, the data set.

        Args:
            data: name of the data set the cells need, "" where nothing is known of them.
            folder: where it lies, "" for the default.

        Raises:
            IkdError: what is wrong on which worker. That there is none yet is no mistake: a queue takes time.
        """
        self._look(every=0.0)
        token = results / f".seen-by-workers-{self.owner}"
        files.write_text(token, self.owner)
        try:
            seen = self._ask(inspect, str(token.resolve()), seconds=LOOK_SECONDS)
        finally:
            token.unlink(missing_ok=True)
        self._look(every=0.0)
        places: dict[tuple[str, str], str] = {}
        for worker, found in seen.items():
            if worker not in self._workers:
                continue  # it went meanwhile: Dask knows, and gives it no cell
            self._check(worker, found, results)
            places.setdefault((found["host"], found["folder"]), worker)
        if data and places:
            self._check_data(places.values(), data, folder)
        print(self._sentence(len(seen)), file=sys.stderr, flush=True)

    def _check(self, worker: str, found: Any, results: Path) -> None:
        if isinstance(found, Exception):
            raise IkdError(f"worker {worker}: {_why(found, LOOK_SECONDS)}")
        if found["code"] != self.code:
            raise IkdError(
                f"worker {worker}: ikdlib {found['version']}, other code than here "
                f"({ikdlib.__version__}); install the same there"
            )
        if found["token"] != self.owner:
            raise IkdError(f"worker {worker}: does not see {results}; it needs the shared results folder")

    def _check_data(self, workers: Iterable[str], data: str, folder: str) -> None:
        """Loading takes seconds, so one worker answers for all that started in its folder of its machine."""
        from ikdlib.data import load

        here = load(data, folder or None).sha256
        seen = self._ask(digest_of, data, folder, among=workers, seconds=DATA_SECONDS)
        for worker, found in seen.items():
            if isinstance(found, Exception):
                raise IkdError(f"worker {worker}: {data}: {_why(found, DATA_SECONDS)}")
            if found != here:
                raise IkdError(f"worker {worker}: {data}: {found}; here its sha256 is {here}")

    def _sentence(self, workers: int) -> str:
        if not workers:
            return f"scheduler {self._scheduler}: no worker yet; the first cell waits for one"
        return f"scheduler {self._scheduler}: workers: {workers}, cells at once: {self.slots}"

    def _ask(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        among: Iterable[str] | None = None,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        """What each worker answers, or why it does not: one that hangs keeps none of the others waiting."""
        workers = list(self._workers if among is None else among)

        async def ask(worker: str) -> Any:
            try:
                asked = self._client.run(function, *arguments, workers=[worker], on_error="return")
                return (await asyncio.wait_for(asked, seconds or ANSWER_SECONDS))[worker]
            except Exception as error:
                return error

        async def ask_all() -> list[Any]:
            return await asyncio.gather(*map(ask, workers))

        return dict(zip(workers, self._client.sync(ask_all), strict=True))


def _connect(scheduler: str) -> Client:
    """A client of a scheduler that has answered.

    Raises:
        IkdError: none does, or the package that asks is missing.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise IkdError("scheduler: needs the package distributed: pip install 'ikdlib[cluster]'") from None
    # What its loggers and warnings have to say, a line of ours says: they print tracebacks.
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    address = _address(scheduler)
    try:
        # A client that cannot connect leaves a thread, and waits for ever where something else answers.
        asyncio.run(asyncio.wait_for(_identity(address), ANSWER_SECONDS))
        with warnings.catch_warnings(record=True) as heard:
            client = Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except Exception as error:  # there are as many kinds as ways to be no scheduler
        raise IkdError(f"scheduler {scheduler}: {_why(error, ANSWER_SECONDS)}; is it running?") from None
    for warning in heard:
        if names := re.findall(r"^\| (\w+) ", str(warning.message), re.MULTILINE)[1:]:
            warnings.warn(f"the cluster has other versions of {', '.join(names)} than here", stacklevel=2)
    return client


def _address(scheduler: str) -> str:
    if "://" in scheduler:
        return scheduler
    try:
        return json.loads(Path(scheduler).read_text())["address"]
    except OSError:
        raise IkdError(
            f"scheduler: {scheduler} is neither an address like tcp://HOST:PORT nor a file"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise IkdError(f"scheduler: {scheduler} is not a scheduler file: it names no address") from None


async def _identity(address: str) -> None:
    from distributed import Security, rpc

    security = Security().get_connection_args("client")
    async with rpc(address, timeout=ANSWER_SECONDS, connection_args=security) as server:
        found = await server.identity()
    if "workers" not in found:
        raise ValueError(f"that is a {found['type']}, not a scheduler")


def _why(error: Exception, seconds: float) -> str:
    # Of an error before the function was called, only the text comes back.
    if missing := re.search(r"No module named '([\w.]+)'", str(error)):
        return f"no module {missing[1]!r} there; install ikdlib {ikdlib.__version__} there"
    if isinstance(error, OSError) and error.errno is None:  # a lost connection, or a time that is over
        return f"no answer within {seconds:g} s"
    return str(error).partition("\n")[0] or type(error).__name__
