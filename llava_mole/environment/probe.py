"""What only importing can tell. Run as a file of its own, in a process that may die of it.

    python -P probe.py OUT [SKIP ...]

Appends a JSON line to OUT before and after each step, so that whoever reads it knows which step a
killed process was in. Steps named in SKIP are left out.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]


def torch_build() -> Facts:
    import torch

    facts: Facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkl": torch.backends.mkl.is_available(),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        facts["cuda_available"] = torch.cuda.is_available()
        if torch.version.cuda and not facts["cuda_available"]:
            try:
                torch.cuda.init()
            except RuntimeError as error:
                facts["cuda_error"] = first_line(error)
    if caught and not facts["cuda_available"]:
        facts["cuda_warning"] = str(caught[0].message).splitlines()[0]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    facts["accelerator"] = None if accelerator is None else accelerator.type
    facts["gpus"] = []
    for index in range(torch.cuda.device_count() if facts["cuda_available"] else 0):
        device = torch.cuda.get_device_properties(index)
        facts["gpus"].append(
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_gib": round(device.total_memory / 2**30, 1),
            }
        )
    if facts["cuda_available"]:
        facts["bf16"] = torch.cuda.is_bf16_supported()
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def attention() -> Facts:
    import torch

    cuda = torch.backends.cuda
    enabled = {
        "flash": cuda.flash_sdp_enabled(),
        "efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
        "math": cuda.math_sdp_enabled(),
    }
    try:
        importlib.import_module("torch.nn.attention.flex_attention")
        flex = True
    except ImportError:
        flex = False
    return {"sdpa": [name for name, on in enabled.items() if on], "flex": flex}


def grouped_mm() -> Facts:
    """Tried on 2 groups of 8 x 8 on each device, for its presence promises nothing."""
    import torch
    from torch.nn import functional as F

    works: Facts = {}
    if not hasattr(F, "grouped_mm"):
        return {"cpu": "not in this torch"}
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for device in devices:
        ends = torch.tensor([8, 16], dtype=torch.int32, device=device)
        rows = torch.ones(16, 8, dtype=torch.bfloat16, device=device)
        weights = torch.ones(2, 8, 8, dtype=torch.bfloat16, device=device)
        try:
            found = F.grouped_mm(rows, weights, offs=ends)
            works[device] = "works" if bool((found == 8).all()) else "gives wrong values"
        except RuntimeError as error:
            works[device] = first_line(error)
    return works


def torchvision_operators() -> Facts:
    import torch
    import torchvision

    boxes, scores = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0])
    torchvision.ops.nms(boxes, scores, 0.5)
    return {"version": torchvision.__version__}


def transformers_classes() -> Facts:
    """transformers imports its parts when they are asked for; so ask for those that are used."""
    import transformers

    for name in ("AutoModelForImageTextToText", "AutoProcessor", "PreTrainedModel", "Trainer"):
        getattr(transformers, name)
    return {"version": transformers.__version__}


def hub() -> Facts:
    from huggingface_hub import constants, get_token

    return {
        "endpoint": constants.ENDPOINT,
        "offline": constants.is_offline_mode(),
        "cache": str(constants.HF_HUB_CACHE),
        "logged_in": get_token() is not None,  # never the token itself
    }


def importing(name: str) -> Callable[[], Facts]:
    def step() -> Facts:
        module = importlib.import_module(name)
        return {"file": module.__file__}

    return step


STEPS: dict[str, Callable[[], Facts]] = {
    "torch": torch_build,
    "torchvision": torchvision_operators,
    "attention": attention,
    "grouped_mm": grouped_mm,
    "huggingface_hub": hub,
    "safetensors": importing("safetensors.torch"),
    "PIL": importing("PIL.Image"),
    "transformers": transformers_classes,
    "open_clip": importing("open_clip"),
    "timm": importing("timm"),
    "peft": importing("peft"),
    "accelerate": importing("accelerate"),
    "llava_mole": importing("llava_mole"),
}


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def failure(error: BaseException) -> Facts:
    """What failed, the error that began it last: transformers hides it behind its own."""
    root = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    frames = traceback.extract_tb(root.__traceback__)
    facts: Facts = {
        "error": f"{type(root).__name__}: {first_line(root)}",
        "at": f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None,
    }
    if isinstance(root, ModuleNotFoundError):
        facts["missing"] = root.name
    return facts


def main(out: str, skip: list[str]) -> None:
    with open(out, "a", encoding="utf-8") as file:

        def say(line: Facts) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        for name, step in STEPS.items():
            if name in skip:
                continue
            say({"begin": name})
            try:
                facts = step()
            except (Exception, SystemExit) as error:  # a broken package may raise anything
                facts = failure(error)
            say({"end": name, "facts": facts})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], sys.argv[2:])
