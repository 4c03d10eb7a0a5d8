"""Jobs on a GPU: compiled in many processes side by side, then timed one after another while the other processes wait.

Compiling takes most of a run, a core for each process. Timing needs the GPU alone.
"""

import multiprocessing
import os
import traceback

from tqdm import tqdm


def share_memory():
    """Let processes share the memory of a GPU, of which each would take three quarters; before JAX looks for one."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def rows(jobs, prepare, finish):
    """`finish(prepare(job))` for each job, in their order. `prepare` compiles, and `finish` times."""
    workers = min(len(jobs), max(1, (os.cpu_count() or 1) - 1))
    context = multiprocessing.get_context("spawn")
    compiled, turn, done = context.Barrier(workers), context.Lock(), context.Queue()
    numbered = list(enumerate(jobs))
    for start in range(workers):
        work = numbered[start::workers], prepare, finish, compiled, turn, done
        context.Process(target=_work, args=work, daemon=True).start()
    found = {}
    for _ in tqdm(jobs, desc="on the GPU", unit="job"):
        number, row = done.get()
        if number is None:
            raise RuntimeError(row)
        found[number] = row
    return [found[number] for number in range(len(jobs))]


def _work(share, prepare, finish, compiled, turn, done):
    try:
        ready = [(number, prepare(job)) for number, job in share]
        compiled.wait()
        with turn:
            for number, one in ready:
                done.put((number, finish(one)))
    except Exception:
        done.put((None, traceback.format_exc()))
        compiled.abort()
