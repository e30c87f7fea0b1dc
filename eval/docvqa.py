r"""DocVQA: questions about scanned documents, scored by ANLS.

    python eval/docvqa.py --model runs/quickstart/model --out results/docvqa \
        --data DocVQA_VAL.tsv

DocVQA (Mathew et al. 2021, arXiv 2007.00398) as VLMEvalKit's DocVQA_{VAL,TEST}.tsv hold it: columns
index, image, question, answer (one text, or a list of accepted ones). Average normalised
Levenshtein similarity: one minus the edit distance over the longer length, of the nearest accepted
answer, and nothing below one half. The test split's answers are withheld: it gives a submission
file.
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

URL = "https://opencompass.openxlab.space/utils/VLMEval"
MD5 = {"VAL": "d5ee77e1926ff10690d469c56b73eabf", "TEST": "6a2f28cac26ef2d3447374e8c6f6c8e9"}
"""As VLMEvalKit lists them."""

BENCHMARK = Benchmark(
    name="docvqa",
    title="DocVQA",
    source="https://www.docvqa.org, arXiv 2007.00398",
    licence="MIT (annotations); documents of the UCSF Industry Documents Library",
    protocol=Protocol(passes="vanilla", answer="generate", style="short", max_new_tokens=32),
    kind="open",
    metric="anls",
    files=tuple(
        PublishedFile(
            f"DocVQA_{split}.tsv", "en", split.lower(), url=f"{URL}/DocVQA_{split}.tsv",
            md5=md5, hidden=split == "TEST",
        )
        for split, md5 in MD5.items()
    ),
)  # fmt: skip

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
