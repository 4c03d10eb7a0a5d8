"""Quality over the paper's Figure 2: nCCS of the soft top k against the hard one, cell by cell.

As published: d = 32, E ~ U[-1, 1], v ~ U[0, 1]. The authors sort each draw by score first; as the rows of E
are drawn alike and apart from v, that changes no distribution, and neither does sorting the outputs by soft
score, because nCCS takes its best match over all of them. Every method sees the same draws.
"""

import time

from tqdm import tqdm

from benchmarks import records
from benchmarks.published import published
from benchmarks.quality import distributions, report
from benchmarks.quality.measure import ALPHAS, BOOSTS, NOTES, SEED, D, cells, compared, measure


def run(quick):
    started = time.monotonic()
    draws = 32 if quick else 256
    paper, rows = published(), []
    for n, k in tqdm(cells(quick), desc="quality", unit="cell"):
        rows.append(compared(n, k, measure(n, k, draws), paper))
    path = records.directory(quick) / "quality.json"
    records.write(
        path,
        started=started,
        rows=rows,
        settings={
            "d": D,
            "draws": draws,
            "seed": SEED,
            "boosts": {name: str(boost) for name, boost in BOOSTS.items()},
            "alphas": ALPHAS,
            "agreement": "|ours - published| <= 4 * combined standard error + 0.003",
        },
        notes=NOTES,
    )
    report.report(path)
    other_scores(quick, draws)


def other_scores(quick, draws):
    """The second page: scores that are not uniform."""
    started = time.monotonic()
    path = records.directory(quick) / "quality-scores.json"
    records.write(
        path, started=started, rows=distributions.measure(draws), settings={"draws": draws, "seed": SEED}
    )
    records.page(path, distributions.text)
