"""nnU-Net's own pools of processes, led to an executor of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

from nnunetv2.ensembling import ensemble
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.postprocessing import remove_connected_components

_USERS_OF_POOLS = (ensemble, evaluate_predictions, fingerprint_extractor, remove_connected_components)


class InlineExecutor(Executor):
    """Runs what is submitted at once, in the calling thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn`` and return its finished future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Pool:
    """The part of ``multiprocessing.Pool`` that nnU-Net uses, on an executor."""

    _pool: tuple[()] = ()

    def __init__(self, executor: Executor):
        self._executor = executor

    def starmap_async(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> SimpleNamespace:
        futures = [self._executor.submit(function, *items) for items in arguments]
        return SimpleNamespace(
            ready=lambda: all(future.done() for future in futures), get=lambda: [future.result() for future in futures]
        )

    def starmap(self, function: Callable[..., Any], arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
        results: list[Any] = self.starmap_async(function, arguments).get()
        return results


@contextmanager
def pools_on(executor: Executor) -> Iterator[None]:
    """nnU-Net's functions use ``executor`` inside the block, instead of a new pool of processes per call."""
    context = SimpleNamespace(Pool=lambda _: nullcontext(_Pool(executor)))
    before = [module.multiprocessing for module in _USERS_OF_POOLS]
    for module in _USERS_OF_POOLS:
        module.multiprocessing = SimpleNamespace(get_context=lambda _: context)
    try:
        yield
    finally:
        for module, original in zip(_USERS_OF_POOLS, before, strict=True):
            module.multiprocessing = original
