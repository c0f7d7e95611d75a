"""Stages on other machines: executors of ``concurrent.futures`` whose calls a cluster makes.

All machines must see the run's folder, the data set and the bundles at the same paths, and have this package installed.
"""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any, TypeVar

from pydantic import NonNegativeInt, PositiveInt

from plugins.errors import InputError
from plugins.state import StrPath

POLL_SECONDS = 0.2
_submitting = threading.Lock()
_T = TypeVar("_T")


class ClusterExecutor(ThreadPoolExecutor, ABC):
    """Threads of which each hands one call to a cluster, and waits for its result.

    Args:
        max_workers: calls that the cluster has at a time, waiting in its queue or at work.
    """

    def __init__(self, max_workers: PositiveInt):
        super().__init__(max_workers)
        self._ending = False

    def submit(self, fn: Callable[..., _T], /, *args: Any, **kwargs: Any) -> Future[_T]:
        """As of any executor; its future raises :class:`BrokenExecutor` if the cluster loses the worker for good."""
        return super().submit(self._remote, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of any executor; ``cancel_futures`` also takes back what waits in the cluster's queue."""
        if cancel_futures:
            self._ending = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    @abstractmethod
    def _remote(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        """The result of a call that the cluster makes."""


class DaskExecutor(ClusterExecutor):
    """By ``dask.distributed``; a call whose worker is lost is made again by another worker.

    Args:
        max_workers: as of :class:`ClusterExecutor`.
        client: of dask's, which :meth:`shutdown` closes.
        cluster: a cluster of dask's, which is closed too, or the address of a scheduler.
    """

    def __init__(self, max_workers: PositiveInt, client: Any, cluster: Any):
        super().__init__(max_workers)
        self._client, self._cluster = client, cluster

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See :class:`ClusterExecutor`."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._client.close()
            if not isinstance(self._cluster, str):
                self._cluster.close()

    def _remote(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        distributed = import_module("distributed")
        task = self._client.submit(function, *args, **kwargs, pure=False)
        while not self._ended(task):
            if self._ending and not any(task.key in keys for keys in self._client.processing().values()):
                task.cancel()
                raise CancelledError
        try:
            return task.result()
        except distributed.KilledWorker as error:
            raise BrokenExecutor(f"dask lost {error.allowed_failures + 1} workers over it") from error
        except distributed.CancelledError as error:
            raise BrokenExecutor(f"dask gave it up: {error}") from error

    def _ended(self, task: Any) -> bool:
        try:
            task.exception(timeout=POLL_SECONDS)
        except TimeoutError:
            return False
        except import_module("distributed").CancelledError:
            pass
        return True


class SubmititExecutor(ClusterExecutor):
    """By submitit; a call whose job is lost, or meets its time limit, is submitted again.

    Args:
        max_workers: as of :class:`ClusterExecutor`.
        jobs: executor of submitit's.
        retries: how often a call is submitted again.
    """

    def __init__(self, max_workers: PositiveInt, jobs: Any, retries: NonNegativeInt):
        super().__init__(max_workers)
        self._jobs, self._retries = jobs, retries

    def _remote(self, function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        lost = import_module("submitit").core.utils.UncompletedJobError
        attempt = 0
        while True:
            job = self._ended(function, *args, **kwargs)
            try:
                value, error = job.result()
                if error is None:
                    return value
                raise error  # submitit itself raises one in the call, when time is up
            except lost as reason:
                if self._ending or attempt == self._retries:
                    raise BrokenExecutor(f"job {job.job_id} ended without a result, see {job.paths.stderr}") from reason
            attempt += 1

    def _ended(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A job that did it, or was lost."""
        with _submitting:
            job = self._jobs.submit(_outcome, function, *args, **kwargs)
        while not job.done():
            if self._ending and job.state == "PENDING":
                job.cancel()
                raise CancelledError
            time.sleep(POLL_SECONDS)
        return job


def dask_executor(max_workers: PositiveInt, cluster: Any = None) -> DaskExecutor:
    """Stages by ``dask.distributed``.

    Args:
        max_workers: stages at a time, waiting in the cluster's queue or at work.
        cluster: address of a scheduler, ``tcp://host:8786``; or a cluster of dask's such as
            ``dask_jobqueue.SLURMCluster``, which gets ``max_workers`` workers; ``None`` starts workers on this machine.

    Raises:
        InputError: if dask is not installed, or nobody answers at the address.
    """
    distributed = _needed("distributed", "dask_executor")
    if cluster is None:
        dask = import_module("dask")
        # dask sets OMP_NUM_THREADS to 1, which the processes of the stages would inherit, and kills by memory
        with dask.config.set({"distributed.nanny.pre-spawn-environ": {}}):
            cluster = distributed.LocalCluster(
                n_workers=max_workers, threads_per_worker=1, memory_limit=0, dashboard_address=":0", preload=[__name__]
            )
    elif not isinstance(cluster, str):
        cluster.scale(max_workers)
    try:
        return DaskExecutor(max_workers, distributed.Client(cluster, set_as_default=False), cluster)
    except (OSError, ValueError) as error:
        raise InputError(
            f"executor: no scheduler of dask's answers at {cluster!r} ({error}). Start one, or correct cluster."
        ) from error


def submitit_executor(
    folder: StrPath,
    max_workers: PositiveInt,
    cluster: str | None = None,
    retries: NonNegativeInt = 3,
    timeout_min: PositiveInt = 1440,
    **parameters: Any,
) -> SubmititExecutor:
    """Stages as jobs of Slurm, or as processes of this machine, by submitit.

    Args:
        folder: of scripts and logs of the jobs, which all machines see.
        max_workers: jobs at a time, waiting in the queue or at work.
        cluster: ``slurm`` or ``local``; ``None`` takes Slurm where it is.
        retries: how often a stage is submitted again whose job is lost or meets its time limit; it goes on from its
            last checkpoint.
        timeout_min: minutes that a job may take.
        parameters: further ones of ``submitit.AutoExecutor``: ``slurm_partition``, ``gpus_per_node``, ``mem_gb``. A
            local job sees no GPU without ``gpus_per_node``.

    Raises:
        InputError: if submitit is not installed, or does not know the cluster or a parameter.
    """
    submitit = _needed("submitit", "submitit_executor")
    try:
        jobs = submitit.AutoExecutor(folder, cluster=cluster)
        jobs.update_parameters(timeout_min=timeout_min, **parameters)
    except (ValueError, NameError, TypeError, RuntimeError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"executor: submitit refuses these settings ({said}). Correct them.") from error
    return SubmititExecutor(max_workers, jobs, retries)


def dask_setup(worker: Any) -> None:
    """Called by a worker of dask's at its start (``preload``): Ctrl-C is left to the process that it works for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcome(function: Callable[..., _T], *args: Any, **kwargs: Any) -> tuple[_T | None, Exception | None]:
    """What a call gave, or raised: submitit keeps an exception as text only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return function(*args, **kwargs), None
    except Exception as error:
        return None, error


def _needed(module: str, what: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        cure = "Install the extra, pip install 'tanq-bundles[cluster]'"
        raise InputError(f"executor: {what} needs {module}, which is missing ({error}). {cure}.") from error
