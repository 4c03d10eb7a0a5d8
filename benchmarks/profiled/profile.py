"""The kernels that calls start on a GPU, from a profile."""

import tempfile
import time
from itertools import accumulate, pairwise
from pathlib import Path

import jax

from benchmarks.records import rounded

CALLS = 3
PAUSE = 0.02  # seconds between one program's kernels and the next one's


def kernels(calls, arguments):
    """`{name: {"kernels": started by a call, "busy_ms": the sum of their milliseconds}}` of `{name: call}`."""
    from jax.profiler import ProfileData  # not in JAX 0.6, in which the report must still be read

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for call in calls.values():
                time.sleep(PAUSE)
                for _ in range(CALLS):
                    jax.block_until_ready(call(*arguments))
        (path,) = Path(folder).rglob("*.xplane.pb")
        found = programs(ProfileData.from_file(str(path)), len(calls))
    return {
        name: {"kernels": rounded(len(times) / CALLS, 4), "busy_ms": rounded(sum(times) / CALLS / 1e6, 4)}
        for name, times in zip(calls, found, strict=True)
    }


def programs(profile, count):
    """The nanoseconds of each kernel of `count` programs, in order; the longest idle gaps separate them."""
    events = sorted(
        (event.start_ns, event.duration_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
    latest = accumulate((start + duration for start, duration in events), max)  # streams overlap
    idle = [start - end for (start, _), end in zip(events[1:], latest, strict=False)]
    longest = sorted(range(len(idle)), key=idle.__getitem__)[len(idle) - (count - 1) :]
    ends = [0, *(after + 1 for after in sorted(longest)), len(events)]
    return [[duration for _, duration in events[first:last]] for first, last in pairwise(ends)]
