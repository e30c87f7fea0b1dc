r"""PathVQA: questions about pathology pictures, closed (yes or no) and open.

    python eval/pathvqa.py --model runs/quickstart/model --out results/pathvqa \
        --data PathVQA_TEST.tsv

PathVQA (He et al. 2020, arXiv 2003.10286) as a TSV with columns index, image, question, answer (as
Pfei111/PathVQA on the hub holds it). Scored as LLaVA-Med and LLaVA-MoLE report it: closed
questions by accuracy, open ones by the share of the answer's words that the reply has (recall). One
deviation: LLaVA-Med's script leaves wrong yes/no replies out of the count; here they are wrong. The
two stand in the report under `answer type`; their mean alone says little.
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

BENCHMARK = Benchmark(
    name="pathvqa",
    title="PathVQA",
    source="https://github.com/UCSD-AI4H/PathVQA, arXiv 2003.10286",
    licence="MIT",
    protocol=Protocol(passes="vanilla", answer="generate", style="question", max_new_tokens=64),
    kind="open",
    metric="pathvqa",
    files=tuple(
        PublishedFile(
            f"PathVQA_{split}.tsv", "en", split.lower(), repo="Pfei111/PathVQA",
        )
        for split in ("TEST", "VAL")
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
