r"""MMBench: multiple choice about a picture, asked once for every order of its options.

    python eval/mmbench.py --model runs/quickstart/model --out results/mmbench \
        --data MMBench_DEV_EN.tsv

The benchmark (Liu et al. 2023, arXiv 2307.06281) is one TSV for each language and split; columns

    index question hint A B C D answer category image source l2-category comment split

`image` is base64, or the index of the row that holds the picture; two to four options. Circular
evaluation: row index + k·10^6 is the question of row index with its options moved k places, and a
question is right only if all of its rows are. Dev: 1,164 questions in 4,329 rows; test: 1,784 in
6,666. Accuracy is the mean over questions; a category's and an l2-category's is that of its own.
Prompt (`--style`): VLMEvalKit's by default, which is the harness of the published tables; that
harness reads replies with a rule of its own, whose score stands beside ours in every report
(`docs/vlmevalkit-rule.md`).

In Chinese with --languages zh. In six languages (Parrot's translation): eval/mtl_mmbench.py.
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

URL = "https://opencompass.openxlab.space/utils/benchmarks/MMBench"
MD5 = {
    "MMBench_DEV_EN": "b6caf1133a01c6bb705cf753bb527ed8",
    "MMBench_DEV_CN": "08b8fc3324a5ed74155350f57be69fbd",
    "MMBench_TEST_EN": "6939fadb0ce626fefc0bdc9c64efc528",
    "MMBench_TEST_CN": "7e1239baf0ee4c8b513e19705a0f317e",
    "MMBench_DEV_EN_V11": "30c05be8f2f347a50be25aa067248184",
    "MMBench_DEV_CN_V11": "593f9b5f6bea453d870a798b34ae4f37",
    "MMBench_TEST_EN_V11": "8d1a704e791df6f5d9fb3ef782b65365",
    "MMBench_TEST_CN_V11": "156e6569f9547afb16603eca16e85373",
}
"""As VLMEvalKit lists them. The answers of the V11 test splits are in those files since 2026; the
files before had none."""

GROUPS = {
    "coarse_perception": (
        "image_style", "image_scene", "image_emotion", "image_quality", "image_topic",
    ),
    "finegrained_perception (instance-level)": (
        "object_localization", "attribute_recognition", "celebrity_recognition", "ocr",
    ),
    "finegrained_perception (cross-instance)": (
        "spatial_relationship", "attribute_comparison", "action_recognition",
    ),
    "attribute_reasoning": (
        "physical_property_reasoning", "function_reasoning", "identity_reasoning",
    ),
    "relation_reasoning": ("social_relation", "physical_relation", "nature_relation"),
    "logic_reasoning": ("structuralized_imagetext_understanding", "future_prediction"),
}  # fmt: skip


def published(name: str) -> PublishedFile:
    """MMBench_SPLIT_LANGUAGE[_V11]; splits are dev, test, dev_v11 and test_v11."""
    parts = name.lower().split("_")
    return PublishedFile(
        f"{name}.tsv",
        "zh" if "cn" in parts else "en",
        "_".join([parts[1], *parts[3:]]),
        url=f"{URL}/{name}.tsv",
        md5=MD5[name],
        hidden=name in ("MMBench_TEST_EN", "MMBench_TEST_CN"),
    )


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench",
    source="https://github.com/open-compass/MMBench, arXiv 2307.06281",
    licence="Apache-2.0 (questions); pictures belong to their sources",
    protocol=Protocol(passes="circular", answer="generate", style="vlmevalkit", max_new_tokens=64),
    files=tuple(published(name) for name in MD5),
    groups=GROUPS,
    note="Published tables use VLMEvalKit, with a judge model where its rule reads nothing.",
)

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
