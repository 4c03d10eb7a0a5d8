"""The kernels that calls start on a GPU, from a profile."""

import tempfile
import time
from pathlib import Path

import jax
from jax.profiler import ProfileData

from benchmarks.records import rounded

CALLS = 3
PAUSE = 0.02  # seconds between one program's kernels and the next one's


def kernels(calls, arguments):
    """`{name: {"kernels": started by a call, "busy_ms": milliseconds in which they run}}` of `{name: call}`."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for call in calls.values():
                time.sleep(PAUSE)
                for _ in range(CALLS):
                    jax.block_until_ready(call(*arguments))
        (path,) = Path(folder).rglob("*.xplane.pb")
        programs = _programs(ProfileData.from_file(str(path)))
    return {
        name: {"kernels": rounded(len(times) / CALLS, 4), "busy_ms": rounded(sum(times) / CALLS / 1e6, 4)}
        for name, times in zip(calls, programs, strict=True)
    }


def _programs(profile):
    """The nanoseconds of each kernel of each program, in their order; a pause separates the programs."""
    events = sorted(
        (event.start_ns, event.duration_ns)
        for plane in profile.planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
    programs, ended = [], None
    for start, duration in events:
        if ended is None or start - ended > PAUSE * 1e9 / 2:
            programs.append([])
        programs[-1].append(duration)
        ended = start + duration
    return programs
