r"""ScienceQA-IMG: school science questions with a picture, two to five options, a hint.

    python eval/scienceqa.py --model runs/quickstart/model --out results/sqa \
        --data ScienceQA_TEST.tsv

ScienceQA (Lu et al. 2022, arXiv 2209.09513), the questions that have a picture, as VLMEvalKit's
TSVs ScienceQA_{TEST,VAL}.tsv hold them (MMBench's columns). Every row once, accuracy over rows.
LLaVA's own prompt is `--style llava`, the default: hint, question, options, a closing line.
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

URL = "https://opencompass.openxlab.space/utils/benchmarks/ScienceQA"
MD5 = {
    "ScienceQA_TEST": "e42e9e00f9c59a80d8a5db35bc32b71f",
    "ScienceQA_VAL": "96320d05e142e585e7204e72affd29f3",
}
"""As VLMEvalKit lists them."""

BENCHMARK = Benchmark(
    name="scienceqa",
    title="ScienceQA-IMG",
    source="https://scienceqa.github.io, arXiv 2209.09513",
    licence="CC BY-NC-SA 4.0",
    protocol=Protocol(passes="vanilla", answer="generate", style="llava", max_new_tokens=64),
    files=tuple(
        PublishedFile(
            f"{name}.tsv", "en", name.split("_")[1].lower(), url=f"{URL}/{name}.tsv", md5=md5
        )
        for name, md5 in MD5.items()
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
