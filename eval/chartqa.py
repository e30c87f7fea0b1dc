r"""ChartQA: questions about charts, answered with a number or a word, within 5 %.

    python eval/chartqa.py --model runs/quickstart/model --out results/chartqa \
        --data ChartQA_TEST.tsv

ChartQA (Masry et al. 2022, arXiv 2203.10244) as VLMEvalKit's ChartQA_TEST.tsv holds it: columns
index, image, question, answer, split. Relaxed accuracy: a number is right within 5 % of the answer
("12 %" is 0.12), anything else if it is the same text, letter case aside; an answer of 0 must be
said exactly. One of LLaVA-MoLE's own tests (its document domain).
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

BENCHMARK = Benchmark(
    name="chartqa",
    title="ChartQA",
    source="https://github.com/vis-nlp/ChartQA, arXiv 2203.10244",
    licence="GPL-3.0 (data set)",
    protocol=Protocol(passes="vanilla", answer="generate", style="short", max_new_tokens=32),
    kind="open",
    metric="relaxed",
    files=(
        PublishedFile(
            "ChartQA_TEST.tsv",
            "en",
            url="https://opencompass.openxlab.space/utils/VLMEval/ChartQA_TEST.tsv",
            md5="c902e0aa9be5582a7aad6dcf52734b42",
        ),
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
