"""One rank of several that fill feature stores together, for tests/test_features_on_ranks.py.

    python -m tests.filling TOWER PICTURES OUT

For each of `DISKS` writes OUT/<disk>-<rank>.safetensors, the features of all PICTURES/*.png, and
.json: how many were computed by all, then again, and how many rows the store holds in memory.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from llava_mole import ranks
from llava_mole.exiting import run_to_end
from llava_mole.feature_cache import FeatureCache
from llava_mole.feature_key import TowerAlone, feature_key
from llava_mole.features import FeatureStore
from llava_mole.processing import LlavaMoleImageProcessor
from llava_mole.vision import load_vision

DISKS = ("none", "shared", "own")
"""No cache; a folder that all ranks see; one each, as on machines that share no disk."""


def main(tower: str, pictures: str, out: str) -> int:
    torch.set_num_threads(1)
    ranks.join()
    alone = TowerAlone(*load_vision(f"local-dir:{tower}"))
    image_processor = LlavaMoleImageProcessor(alone.config.vision_part.preprocess)
    key = feature_key(alone, image_processor)
    paths = sorted(Path(pictures).glob("*.png"))
    for disk in DISKS:
        folder = Path(out, disk, str(ranks.rank()) if disk == "own" else "all")
        cache = None if disk == "none" else FeatureCache(folder, key)
        store = FeatureStore(alone, image_processor, 4, cache)
        if ranks.rank() == 1:
            store.fill(paths[:3], progress=False)  # ranks need not start with the same
        ranks.barrier()
        computed = store.fill_together(paths, progress=False)
        again = store.fill_together(paths, progress=False)
        figures = {"computed": computed, "again": again, "memory": len(store.memory)}
        place = Path(out, f"{disk}-{ranks.rank()}.json")
        place.write_text(json.dumps(figures))
        save_file({"features": store(paths)}, place.with_suffix(".safetensors"))
    ranks.leave()
    return 0


if __name__ == "__main__":
    run_to_end(lambda: main(*sys.argv[1:]))
