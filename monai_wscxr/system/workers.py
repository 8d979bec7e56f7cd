"""Worker processes that isolate decoders: a crash or an endless loop costs one input, not the run.

A thread of this process drives each worker: it sends one task at a time, waits up to the time limit, and starts another worker
when one has died. Workers are forked from a server process that has done the imports. They are limited in memory, silent
(output of a C library could quote a header), and end together with this process, even if it is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

from monai_wscxr.errors import InputError

_START_SECONDS = 300.0  # a cold disk and a busy machine


class WorkerLostError(Exception):
    """The process of a task died, or the task exceeded its time limit.

    Attributes:
        too_slow: whether the process was stopped because of the time limit.
    """

    def __init__(self, too_slow: bool) -> None:
        super().__init__("the time limit was reached" if too_slow else "the process died")
        self.too_slow = too_slow


def start_server(preload: Sequence[str]) -> None:
    """Start the server process, where the platform has one, so that it imports the modules in parallel with this process.

    Args:
        preload: modules to import.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        process_context(preload)
        from multiprocessing import forkserver

        # the server inherits the mask, because Ctrl-C during its imports would print a stack trace
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def process_context(preload: Sequence[str]) -> Any:
    """Return the multiprocessing context: a server process where the platform has one, otherwise new processes."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


class WorkerPool:
    """Worker processes with a queue of tasks.

    Args:
        workers: number of processes; 0 runs each task immediately in this process, without isolation but as silently.
        initializer: called first in each process, with `arguments`.
        arguments: arguments of `initializer`; must be picklable, as must tasks and results.
        seconds: time limit of a task.
        memory: bytes that a process may allocate beyond those after its start (Linux); None means no limit.
        preload: modules that the server process imports once for all workers.
    """

    def __init__(
        self,
        workers: int,
        initializer: Callable[..., Any],
        arguments: Sequence[Any] = (),
        seconds: float = 60.0,
        memory: int | None = None,
        preload: Sequence[str] = (),
    ) -> None:
        self.workers, self.seconds, self.memory = workers, seconds, memory
        self._initializer, self._arguments = initializer, tuple(arguments)
        self._tasks: queue.PriorityQueue[tuple[int, int, Any]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._threads: list[threading.Thread] = []
        if workers == 0:
            initializer(*arguments)
            return
        self._context = process_context(preload)
        start_server(preload)
        self._threads = [threading.Thread(target=self._drive, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, function: Callable[..., Any], *arguments: Any, urgent: bool = False, seconds: float | None = None
    ) -> Future[Any]:
        """Queue a task.

        Args:
            function, arguments: the call to make in a worker; must be picklable.
            urgent: run before all tasks that are not urgent.
            seconds: time limit of this task; None takes that of the pool.

        Returns:
            Future of the result. It raises the exception of the function, or `WorkerLostError`.
        """
        future: Future[Any] = Future()
        if self.workers == 0:
            try:
                with _silenced():
                    future.set_result(function(*arguments))
            except Exception as error:
                future.set_exception(error)
            return future
        self._tasks.put(
            (0 if urgent else 1, next(self._numbers), (future, function, arguments, seconds or self.seconds))
        )
        return future

    def close(self) -> None:
        """End all processes; tasks that have not started are cancelled."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait()[2][0].cancel()
        for _ in self._threads:
            self._tasks.put((0, next(self._numbers), None))
        for thread in self._threads:
            thread.join(5.0)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _drive(self) -> None:
        """Drive one worker process, in a thread: send it tasks and pass the results to their futures."""
        process, pipe = None, None
        while True:
            task = self._tasks.get()[2]
            if task is None:
                break
            future, function, arguments, seconds = task
            try:
                if process is None:
                    process, pipe = self._start()
                assert pipe is not None
                try:
                    pipe.send((function, arguments))
                    in_time = pipe.poll(seconds)
                    good, value = pipe.recv() if in_time else (False, WorkerLostError(too_slow=True))
                except (EOFError, OSError):
                    good, value = False, WorkerLostError(too_slow=False)
                if isinstance(value, WorkerLostError):
                    _end(process, pipe)
                    process, pipe = None, None
            except BaseException as error:
                good, value = False, error
            if good:
                future.set_result(value)
            else:
                future.set_exception(value)
        if process is not None and pipe is not None:
            with contextlib.suppress(OSError):
                pipe.send(None)
            _end(process, pipe, patience=1.0)

    def _start(self) -> tuple[Any, Any]:
        """Start a process and wait until it is initialised; returns the process and this end of its pipe."""
        here, there = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(there, self._initializer, self._arguments, self.memory), daemon=True
        )
        process.start()
        there.close()
        try:
            ready = here.poll(_START_SECONDS) and here.recv()
        except (EOFError, OSError):
            ready = False
        if ready is not True:
            _end(process, here)
            if isinstance(ready, Exception):
                raise ready
            raise InputError(
                "a worker process could not start, most likely for lack of memory; use fewer workers with --workers"
            )
        return process, here


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Send the output of this process nowhere: C libraries print about damaged files, and could quote a header."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
    except OSError:  # closed by whoever started this process, so nothing can be printed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in zip((1, 2), kept, strict=True):
            os.dup2(before, descriptor)
            os.close(before)
        os.close(nowhere)


def _end(process: Any, pipe: Any, patience: float = 0.0) -> None:
    """End a process: wait for it for `patience` seconds, then kill it."""
    process.join(patience)
    if process.is_alive():
        process.kill()
        process.join()
    pipe.close()


def _serve(pipe: Any, initializer: Callable[..., Any], arguments: tuple[Any, ...], memory: int | None) -> None:
    """Run a worker process: initialise it, then execute tasks from the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the driving process
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        initializer(*arguments)
    except Exception as error:
        pipe.send(error)
        return
    if memory is not None:
        _limit_memory(memory)
    pipe.send(True)
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):  # the driving process has ended
            return
        if task is None:
            return
        function, values = task
        try:
            answer = (True, function(*values))
        except Exception as error:
            answer = (False, error)
        try:
            pipe.send(answer)
        except (EOFError, BrokenPipeError, ConnectionError):
            return
        except Exception as error:  # a result or an exception that cannot be pickled
            pipe.send((False, RuntimeError(f"{type(error).__name__} while sending {type(answer[1]).__name__}")))


def _limit_memory(extra: int) -> None:
    """Limit this process to `extra` bytes beyond its current allocation, on systems that support it."""
    try:
        import resource

        with open("/proc/self/status") as file:
            held = next(int(line.split()[1]) for line in file if line.startswith("VmData:")) * 1024
        limit = held + extra
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    except (ImportError, OSError, StopIteration, ValueError):
        return
