"""Jobs on a GPU: compiled in many processes side by side, then timed one after another while the other processes wait.

Compiling takes most of a run, and timing needs the GPU alone. To choose the kernel of a matrix product, XLA times
several while it compiles. The GPU is then in use, so a peer with such a product may get another kernel.
"""

import multiprocessing
import os
import queue
import threading
import traceback

from tqdm import tqdm


def share_memory():
    """Let several processes share a GPU; call this before JAX starts its backend.

    By default each process takes three quarters of the memory.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def need_gpu():
    """Exit where JAX finds no GPU; let several processes share it where there is one."""
    import jax  # not with the module: a process whose jobs need no JAX starts at once

    share_memory()
    if jax.default_backend() != "gpu":
        raise SystemExit("JAX finds no GPU here; `python -m benchmarks compiled` needs none.")


def rows(jobs, prepare, finish):
    """`finish(prepare(job))` for each job, in their order. `prepare` compiles, and `finish` times."""
    workers = min(len(jobs), max(1, (os.cpu_count() or 1) - 1))
    context = multiprocessing.get_context("spawn")
    compiled, turn, done = context.Barrier(workers), context.Lock(), context.Queue()
    numbered = list(enumerate(jobs))
    started = []
    for start in range(workers):
        work = numbered[start::workers], prepare, finish, compiled, turn, done
        started.append(context.Process(target=_work, args=work, daemon=True))
        started[-1].start()
    found = {}
    for _ in tqdm(jobs, desc="on the GPU", unit="job"):
        number, row = _next(done, started)
        if number is None:
            raise RuntimeError(row)
        found[number] = row
    return [found[number] for number in range(len(jobs))]


def _next(done, processes):
    """What comes next from the processes; RuntimeError if one of them has died."""
    while True:
        codes = [process.exitcode for process in processes]
        try:
            return done.get(timeout=1)
        except queue.Empty:
            if any(codes):
                raise RuntimeError(f"a process died: exit codes {codes}") from None


def _work(share, prepare, finish, compiled, turn, done):
    try:
        ready = [(number, prepare(job)) for number, job in share]
        compiled.wait()
        with turn:
            for number, one in ready:
                done.put((number, finish(one)))
    except threading.BrokenBarrierError:  # another process has failed, and says why
        return
    except Exception:
        done.put((None, traceback.format_exc()))
        compiled.abort()
