"""`python -m benchmarks.compiled TARGET`: cases as JSON in, a line of JSON out for each. `measured` starts this."""

import sys

from benchmarks.compiled.measure import compile_all

if __name__ == "__main__":
    compile_all(sys.argv[1])
