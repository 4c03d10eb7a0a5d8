"""`python -m benchmarks NAME [--quick]`: a sub-command for each benchmark, a folder with `run(quick)`."""

import argparse
import importlib

BENCHMARKS = {
    "quality": "how close the soft top k comes to the hard one, over the paper's Figure 2",
    "frontier": "quality against the reach of the gradient: where the default boost's numbers come from",
    "speed": "time, compile time and memory, beside the limits and the peers, over the paper's Figure 1",
    "learning": "what models learn through it and its peers: score at hard evaluation, recall, steps, failures",
    "experts": "time and memory of experts that choose their tokens, beside lax.top_k with a scatter",
    "compiled": "kernels started and memory on a GPU or a TPU that is not there, from what is compiled for it",
    "profiled": "kernels started on the GPU of this machine and their time, beside the peers",
    "pytorch": "time of the operator beside Algorithm 2 in PyTorch, on the GPU of this machine",
    "devices": "bytes moved and memory on each of 1 to 64 devices, from compiled HLO",
}
OWN = ("benchmarks", "shtopk")  # no extra installs these


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, purpose in BENCHMARKS.items():
        command = names.add_parser(name, help=purpose, description=purpose)
        command.add_argument(
            "--quick", action="store_true", help="a small run, kept apart from the committed results"
        )
        if name == "learning":
            command.add_argument("--task", nargs="+", dest="tasks", help="these tasks only")
            command.add_argument("--method", nargs="+", dest="methods", help="these methods only")
            command.add_argument(
                "--more-seeds",
                action="store_true",
                help="a few methods on 15 further seeds, at the rate of their rows",
            )
        if name == "compiled":
            command.add_argument("--target", choices=("h100", "a100", "tpu"), help="this one only")
    arguments = vars(parser.parse_args())
    try:
        benchmark = importlib.import_module(f"benchmarks.{arguments.pop('name')}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN:
            raise
        parser.exit(1, f"{error}; the benchmarks' needs come with: pip install -e '.[bench]'\n")
    benchmark.run(**arguments)


if __name__ == "__main__":
    main()
