"""A short run of the fuzzer, so that it stays in working order; `python -m tests.fuzz --minutes 30` is the long one."""

import pytest

from tests import fuzz


# k = 2 of 5 rows in float16 by `Scaled`, straight through; k = 3 of 13 in float64 by the default. Both sort again.
@pytest.mark.parametrize("seed", [54, 181])
def test_a_short_run(seed):
    counts = fuzz.fuzz(seed, 100)
    assert counts["cases"] >= 20  # a configuration with k = n = 1 has few cases
    assert counts["compared with the oracle"] > 0
