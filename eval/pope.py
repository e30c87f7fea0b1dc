r"""POPE: is there a … in the picture? Yes or no, for objects that are there and that are not.

    python eval/pope.py --model runs/quickstart/model --out results/pope \
        --data POPE.tsv

POPE (Li et al. 2023, arXiv 2305.10355) as VLMEvalKit's POPE.tsv holds it: columns index, image,
question, answer (Yes or No), category. A question may belong to several of the categories random,
popular and adversarial, written with commas; it counts in each. Reported beside accuracy, with yes
as the positive answer: precision, recall, F1 (VLMEvalKit's headline) and the share of yes. A reply
that says neither counts as not yes, and as wrong. Over all, each question counts once here; in
VLMEvalKit's overall row it counts once for each of its categories. Prompt: the question and LLaVA's
"Answer the question using a single word or phrase." (`--style short`).
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    source="https://github.com/AoiDragon/POPE, arXiv 2305.10355",
    licence="MIT (questions); pictures of COCO",
    protocol=Protocol(passes="vanilla", answer="generate", style="short", max_new_tokens=16),
    kind="yes_no",
    files=(
        PublishedFile(
            "POPE.tsv",
            "en",
            url="https://opencompass.openxlab.space/utils/VLMEval/POPE.tsv",
            md5="c12f5acb142f2ef1f85a26ba2fbe41d5",
        ),
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
