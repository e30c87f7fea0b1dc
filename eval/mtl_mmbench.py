r"""MTL-MMBench: MMBench's dev split in six languages, translated by Parrot's authors.

    python eval/mtl_mmbench.py --model runs/quickstart/model --out results/mtl \
        --data mmbench_dev_tr.tsv

Files mmbench_dev_{ar,cn,en,pt,ru,tr}.tsv of AIDC-AI/Parrot-dataset, MMBench's columns, categories
and circular rows (eval/mmbench.py); 1,164 questions a language. Asked in Parrot's words, the
closing line in the question's language.
"""

from __future__ import annotations

from llava_mole.evaluation import command
from llava_mole.evaluation.benchmark import Benchmark, PublishedFile
from llava_mole.evaluation.protocol import Protocol
from llava_mole.exiting import run_to_end

MD5 = {
    "en": "d9ab776fc018b3d45785e9a5c23431c2",
    "cn": "2ed5135326fed02c8e51ea50dda8222f",
    "pt": "4ddfbcd27ef12444b908c03831cd0295",
    "ar": "4271b4a0d0200e1a86380a878e0d64a4",
    "tr": "4fab39d501389d3d6cc90264bb708f11",
    "ru": "5ba1171ff2e68f80637bf78349e402a5",
}
"""As VLMEvalKit lists them."""

BENCHMARK = Benchmark(
    name="mtl_mmbench",
    title="MTL-MMBench (dev)",
    source="https://github.com/AIDC-AI/Parrot, arXiv 2406.02539",
    licence="CC BY-NC-SA 4.0",
    protocol=Protocol(passes="circular", answer="generate", style="parrot", max_new_tokens=64),
    files=tuple(
        PublishedFile(
            f"mmbench_dev_{code}.tsv",
            "zh" if code == "cn" else code,
            "dev",
            repo="AIDC-AI/Parrot-dataset",
            path=f"mmbench/mmbench_dev_{code}.tsv",
            md5=md5,
        )
        for code, md5 in MD5.items()
    ),
)

if __name__ == "__main__":
    raise SystemExit(run_to_end(lambda: command.main(BENCHMARK, __doc__ or "")))
