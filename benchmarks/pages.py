"""Write the figures of the README and the docs from the results files: `python -m benchmarks.pages`.

In a page, the part NAME of `PARTS` is the text between `<!-- results: NAME -->` and `<!-- end -->`.
"""

import argparse
import re
from pathlib import Path

from benchmarks import guides, readme
from benchmarks.compiled import report as compiled
from benchmarks.devices import report as devices
from benchmarks.learning import report as learning
from benchmarks.profiled import report as profiled
from benchmarks.pytorch import report as pytorch
from benchmarks.records import RESULTS, read
from benchmarks.speed import report as speed
from benchmarks.speed import summary

ROOT = Path(__file__).parent.parent
REGION = re.compile(r"(<!-- results: (\w+) -->)(?:(?!<!-- results:).)*?(<!-- end -->)", re.DOTALL)
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts)]


def table(lines):
    """Tables and their notes, apart from the text around them."""
    return "\n\n" + "\n".join(lines).strip() + "\n\n"


def rows(name):
    return read(name)["rows"]


def learned(task, *methods):
    return learning.scores(read(f"learning-{task}"), methods)


PARTS = {
    "readme_quality": readme.quality,
    "readme_speed": readme.speed,
    "readme_kernels": readme.kernels,
    "readme_learning": readme.learning,
    "cpu_machine": lambda: summary.machine(read("speed")),
    "cpu_few_candidates": lambda: summary.few_candidates(rows("speed")),
    "cpu_sort": lambda: summary.sort(read("speed")["stages"]),
    "cpu_compiling": lambda: summary.compiling(read("speed")["compile_seconds"]),
    "cpu_compared": lambda: table(summary.lines(rows("speed"))),
    "cpu_growth": lambda: table(summary.growth_lines(rows("speed"))),
    "cpu_stages": lambda: table(speed.stages(read("speed")["stages"])),
    "cpu_compilation": lambda: table(speed.compilation(read("speed")["compile_seconds"])),
    "gpu_kernels": lambda: table(profiled.table(rows("gpu-profiled"))),
    "gpu_kernels_compared": lambda: table(profiled.comparisons(rows("gpu-profiled"))),
    "gpu_compared": lambda: table(summary.lines(rows("gpu-speed"))),
    "gpu_growth": lambda: table(summary.growth_lines(rows("gpu-speed"))),
    "gpu_pytorch": lambda: table(pytorch.table(rows("gpu-pytorch"))),
    "gpu_pytorch_compared": lambda: pytorch.compared(rows("gpu-pytorch")),
    "compiled_for_h100": lambda: table(compiled.table(rows("compiled-h100"), compiled.launches)),
    "moved_on_h100": lambda: table(compiled.bytes_moved(rows("compiled-h100"))),
    "port_moves": lambda: compiled.port_moves(rows("compiled-h100")),
    "scores_marked_tokens": lambda: learned("marked-tokens", "recipe", "recipe, by slots"),
    "scores_attention": lambda: learned("pruned-transformer", "recipe", "recipe, by slots"),
    "scores_pruned": lambda: learned("pruned-transformer", "recipe, by slots", "gated top k"),
    "pruned_transformer": lambda: learned(
        "pruned-transformer", "recipe, by slots", "Gumbel-sigmoid", "gated top k"
    ),
    "scores_copying": lambda: learned(
        "selective-copying", "recipe, mask then drawn slots", "recipe, by slots"
    ),
    "learned": lambda: table(learning.by_all_seeds(learning.read(RESULTS), learning.SHOWN)),
    "unit_differentiated": lambda: table(learning.by_all_seeds(learning.read(RESULTS), learning.UNITS)),
    "many_devices": lambda: table(devices.sweep(read("devices"), "devices")),
    "most_devices": lambda: table(devices.largest(read("devices"))),
    "machines": lambda: table(guides.machines()),
    "quality": lambda: table(guides.quality()),
    "milliseconds": lambda: table(guides.milliseconds()),
    "experts": lambda: table(guides.experts()),
    "subsets": lambda: table(guides.subsets()),
    "sparse_attention": lambda: table(guides.sparse_attention()),
    "pooled_transformer": lambda: table(guides.pooled_transformer()),
    "choose_features": lambda: table(guides.choose_features("global")),
    "choose_features_by_input": lambda: table(guides.choose_features("input by input")),
    "token_pruning": lambda: table(guides.token_pruning()),
    "how_many": lambda: table(guides.how_many()),
}


def rendered(text):
    """`text` with every region rendered from the results."""
    return REGION.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], text)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__).parse_args()
    for page in PAGES:
        page.write_text(rendered(page.read_text()))
