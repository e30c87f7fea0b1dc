"""The builders' held-out questions as a benchmark, for a model that is in memory already.

Every builder writes DIR/benchmark/NAME_{dev,test}_{ar,cn,en,pt,ru,tr}.tsv: MMMB's columns and
MMBench's circular rows. `eval/mmmb.py` and `eval/mtl_mmbench.py` read them like the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llava_mole import ranks
from llava_mole.evaluation.benchmark import Benchmark
from llava_mole.evaluation.harness import evaluate
from llava_mole.evaluation.models.ours import OurModel
from llava_mole.evaluation.protocol import Protocol
from llava_mole.evaluation.questions import Selection, read_questions
from llava_mole.evaluation.records import Run
from llava_mole.evaluation.results import make_report, write_report
from llava_mole.modeling import LlavaMoleForConditionalGeneration
from llava_mole.processing import LlavaMoleProcessor

HELD_OUT = Benchmark(
    name="heldout",
    title="Held-out questions of a builder",
    source="data/",
    licence="see ATTRIBUTION.txt beside the files",
    protocol=Protocol(passes="circular", answer="generate", style="letters", max_new_tokens=8),
)


def evaluate_held_out(
    model: LlavaMoleForConditionalGeneration,
    processor: LlavaMoleProcessor,
    files: Sequence[Path],
    out: Path,
    *,
    name: str,
    categories: Sequence[str] = (),
    limit: int | None = None,
    progress: bool = True,
) -> Run:
    """Ask, write predictions and reports into `out`, return the run; a collective.

    An earlier run there is put aside: the model has changed.

    Args:
        name: of the model, for the report.
        categories, limit: which questions; limit is of each language.

    Raises:
        DataError: a file is malformed.
    """
    protocol = HELD_OUT.protocol
    chosen = Selection(tuple(files), categories=tuple(categories), limit=limit)
    questions = read_questions(HELD_OUT, chosen, protocol, progress=False)
    run = evaluate(
        questions.units,
        OurModel(model, processor, protocol, name=name),
        protocol,
        out,
        about=questions.about,
        fresh=True,
        progress=progress,
    )
    if ranks.is_main():
        write_report(make_report(run), out)
    return run
