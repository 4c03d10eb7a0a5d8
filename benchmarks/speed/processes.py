"""Jobs on a GPU: compiled in many processes side by side, then timed one after another while the other processes wait.

Compiling takes most of a run, a core for each process. Timing needs the GPU alone.
"""

import multiprocessing
import traceback

from tqdm import tqdm


def rows(jobs, prepare, finish, workers):
    """`finish(prepare(job))` for each job, in their order. `prepare` compiles, and `finish` times."""
    context = multiprocessing.get_context("spawn")
    compiled, turn, done = context.Barrier(workers), context.Lock(), context.Queue()
    numbered = list(enumerate(jobs))
    for start in range(workers):
        work = numbered[start::workers], prepare, finish, compiled, turn, done
        context.Process(target=_work, args=work, daemon=True).start()
    found = {}
    for _ in tqdm(jobs, desc="speed", unit="job"):
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
