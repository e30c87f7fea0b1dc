"""VisionTower: any open_clip model -> patch features and one summary token.

Two adapters cover open_clip. Token towers (its own ViTs, timm ViTs) give the tokens of a chosen
block through `forward_intermediates`. Convolutional trunks refuse token output; their last feature
map is read with `trunk.forward_features` and flattened, row by row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from llava_mole import hub
from llava_mole.configuration import VisionConfig, WeightSource
from llava_mole.errors import CheckpointError, ConfigError
from llava_mole.hub import HUB_ERRORS, first_line

RESIZES = ("shortest", "longest", "squash")
"""open_clip's ways from a picture to the tower's square."""
MODEL_FOLDER = "model-folder:"
"""Of a WeightSource's name: the tower lies in the model folder that follows."""
# The text tower is never used; this one costs nothing and lets open_clip's public class build the
# vision tower of a full model config.
TINY_TEXT = {"context_length": 2, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}


HUB = "hf-hub:"
WEIGHTS_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError)
"""What open_clip raises where weights cannot be fetched."""
SAFE_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
"""What open_clip takes first from a folder, before any pickle."""


class VisionTower(nn.Module):
    """Pixels to patch features.

    Args:
        visual: the `.visual` of an open_clip model.
        config: which layer, which tokens.
    """

    def __init__(self, visual: nn.Module, config: VisionConfig) -> None:
        super().__init__()
        self.visual = visual
        self.layer = config.layer
        self.keep_class_token = config.select == "cls_patch"
        self.is_convolutional = config.features == "map"
        self.grid = config.grid

    def tokens(self, patches: Tensor) -> Tensor:
        """(N, D_v, H, W) -> (N, P, D_v), row by row, averaged to `grid` x `grid` if asked."""
        if self.grid is not None:
            if self.grid > min(patches.shape[-2:]):
                height, width = patches.shape[-2:]
                raise ConfigError(
                    f"vision grid={self.grid}: the tower gives {height} x {width} patches, which "
                    "can be averaged to fewer, not made more"
                )
            patches = F.adaptive_avg_pool2d(patches, self.grid)
        return patches.flatten(2).transpose(1, 2)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features of each image, the summary token first.

        Args:
            pixel_values: (N, 3, H, W), normalised as the tower's preprocessing says.

        Returns:
            (N, 1 + P, D_v). Token 0 is the class token, or the mean of the patches where the tower
            has none. P: patches, or grid * grid.
        """
        if self.is_convolutional:
            trunk = self.visual.trunk
            grid = trunk.forward_features(pixel_values)  # type: ignore[union-attr,operator]
            if grid.shape[1] != trunk.num_features:  # type: ignore[union-attr]
                grid = grid.permute(0, 3, 1, 2)  # some trunks keep channels last
            summary = grid.flatten(2).mean(dim=2).unsqueeze(1)
            return torch.cat([summary, self.tokens(grid)], dim=1)
        out = self.visual.forward_intermediates(  # type: ignore[operator]
            pixel_values,
            indices=[-1 if self.layer is None else self.layer],
            normalize_intermediates=self.layer is None,
            intermediates_only=True,
            output_fmt="NCHW",
            output_extra_tokens=True,
            stop_early=True,
        )
        patches = out["image_intermediates"][0]
        prefix = out.get("image_intermediates_prefix")
        if prefix and prefix[0] is not None and prefix[0].shape[1]:
            summary = prefix[0][:, :1]
        else:
            summary = patches.flatten(2).mean(dim=2).unsqueeze(1)
        return torch.cat([summary, self.tokens(patches)], dim=1)


def feature_kind(visual: nn.Module, pixel_values: Tensor) -> str:
    """What `VisionConfig.features` is: asked of the tower, as timm trunks refuse what they lack."""
    try:
        visual.forward_intermediates(  # type: ignore[operator]
            pixel_values, indices=[-1], output_fmt="NLC"
        )
    except AssertionError:
        return "map" if hasattr(visual, "trunk") else "tokens"
    except AttributeError as error:
        raise ConfigError(
            f"{type(visual).__name__} does not give patch features (open_clip has no "
            "forward_intermediates for it): choose a ViT, a ConvNeXt or another timm trunk"
        ) from error
    return "tokens"


def build_structure(config: VisionConfig) -> VisionTower:
    """The tower with untrained weights, from its resolved config alone. No file, no network."""
    assert config.model_cfg is not None
    keep = {
        key: value
        for key, value in config.model_cfg.items()
        if key in ("embed_dim", "vision_cfg", "quick_gelu")
    }
    vision_cfg = {**keep["vision_cfg"], "timm_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**{**keep, "vision_cfg": vision_cfg}, text_cfg=TINY_TEXT)
    return VisionTower(model.visual, config).to(getattr(torch, config.dtype))


def load_vision(
    model: str,
    pretrained: str | None = None,
    *,
    layer: int | None = None,
    select: str = "patch",
    grid: int | None = None,
    resize: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
) -> tuple[VisionTower, VisionConfig]:
    """A tower with its weights, by name.

    Args:
        model: an open_clip name, "hf-hub:org/name", "local-dir:FOLDER", or "starter".
        pretrained: open_clip tag of the weights. Needed with an open_clip name.
        layer, select, grid, dtype: see `VisionConfig`.
        revision: of a "hf-hub:" repository; kept in the reference.
        resize: one of RESIZES instead of what the weights were published with.

    Raises:
        ConfigError: unknown name or tag, a tower whose features cannot be read, a layer on a
            convolutional tower.
    """
    clip, model_cfg = create_clip(model, pretrained, revision)
    preprocess = resized(open_clip.get_model_preprocess_cfg(clip), resize)
    source = WeightSource(name=model, revision=revision)
    config = VisionConfig(
        model=model,
        pretrained=pretrained,
        layer=layer,
        select=select,
        grid=grid,
        model_cfg=model_cfg,
        preprocess={key: list(v) if isinstance(v, tuple) else v for key, v in preprocess.items()},
    )
    size = preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    blank = torch.zeros(1, 3, height, width)
    clip.eval()
    with torch.no_grad():
        kind = feature_kind(clip.visual, blank)
    config = VisionConfig.from_dict({**config.to_dict(), "features": kind})
    tower = VisionTower(clip.visual, config).eval()
    if tower.is_convolutional and (layer is not None or select == "cls_patch"):
        raise ConfigError(
            f"vision.model={model!r} is convolutional: it has no class token and only its last "
            "feature map is read; leave vision.layer empty and vision.select at 'patch'"
        )
    with torch.no_grad():
        probe = tower(blank)
    resolved = {
        **config.to_dict(),
        "width": probe.shape[2],
        "num_patches": probe.shape[1] - 1,
        "dtype": dtype,
        "source": WeightSource(
            name=source.name, revision=revision, sha256=tower_hash(tower)
        ).to_dict(),
    }
    return tower.to(getattr(torch, dtype)), VisionConfig.from_dict(resolved)


def resized(preprocess: dict[str, Any], resize: str | None) -> dict[str, Any]:
    """open_clip's preprocessing with another resize_mode; "longest" pads with the mean colour,
    which is zero after normalisation (LLaVA's `expand2square`)."""
    if resize is None:
        return preprocess
    fill = [int(255 * channel) for channel in preprocess["mean"]]
    return {**preprocess, "resize_mode": resize, "fill_color": fill if resize == "longest" else 0}


def plan_vision(
    model: str,
    pretrained: str | None = None,
    *,
    layer: int | None = None,
    select: str = "patch",
    grid: int | None = None,
    resize: str | None = None,
    dtype: str = "float32",
) -> VisionConfig:
    """What `load_vision` would find, without the tower's weights: `build_structure` builds it.

    Args: as `load_vision`.

    Raises:
        ConfigError: unknown name or tag.
    """
    name, tag = find_tower(model, pretrained)
    preprocess = dict(vars(open_clip.transform.PreprocessCfg()))
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        described = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
        model_cfg, published = described["model_cfg"], described.get("preprocess_cfg", {})
    elif name.startswith(HUB):
        raise ConfigError(
            f"vision.model={model!r}: a tower of the hub is known once it was downloaded; name an "
            "open_clip model, or a folder"
        )
    else:
        model_cfg = open_clip.get_model_config(name)
        published = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    preprocess = open_clip.transform.merge_preprocess_dict(preprocess, published)
    config = VisionConfig(
        model=model, pretrained=pretrained, layer=layer, select=select, grid=grid,
        model_cfg=model_cfg, dtype=dtype,
    )  # fmt: skip
    with torch.device("meta"), torch.no_grad():
        tower = build_structure(config).eval()
        size = getattr(tower.visual, "image_size", preprocess["size"])
        height, width = (size, size) if isinstance(size, int) else size
        blank = torch.zeros(1, 3, height, width, dtype=getattr(torch, dtype))
        config = VisionConfig.from_dict(
            {**config.to_dict(), "features": feature_kind(tower.visual, blank)}
        )
        tower = VisionTower(tower.visual, config)
        probe = tower(blank)
    preprocess = resized({**preprocess, "size": size}, resize)
    return VisionConfig.from_dict(
        {
            **config.to_dict(),
            "width": probe.shape[2],
            "num_patches": probe.shape[1] - 1,
            "preprocess": {
                k: list(v) if isinstance(v, tuple) else v for k, v in preprocess.items()
            },
        }
    )


def find_tower(model: str, pretrained: str | None) -> tuple[str, str | None]:
    """The name that open_clip knows a tower by, and its tag. Errors name what to do."""
    name = model
    if model == "starter":
        from llava_mole.starter import ensure_starter

        name = f"local-dir:{ensure_starter().vision}"
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ConfigError(f"vision.model={model!r}: no open_clip_config.json in {folder}")
    elif not name.startswith(HUB):
        if name not in open_clip.list_models():
            raise ConfigError(
                f"vision.model={model!r} is not an open_clip model; `open_clip.list_models()` "
                "names them, 'local-dir:FOLDER' takes a folder, 'starter' the embedded tower"
            )
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained is None:
            raise ConfigError(
                f"vision.model={model!r} without vision.pretrained would be a tower of random "
                f"weights; {name} has {', '.join(tags) or 'no published ones'}"
            )
        if pretrained not in tags and not Path(pretrained).is_file():
            raise ConfigError(f"vision.pretrained={pretrained!r}: {name} has {', '.join(tags)}")
    return name, pretrained


def create_clip(
    model: str, pretrained: str | None, revision: str | None = None
) -> tuple[Any, dict[str, Any]]:
    """An open_clip model with its weights, and its config."""
    name, _ = find_tower(model, pretrained)
    if revision is not None and not name.startswith(HUB):
        raise ConfigError(
            f"vision_revision={revision!r}: only '{HUB}org/name' has revisions, not {model!r}; a "
            "tag of open_clip names its weights, which are checked by hash when they are reused"
        )
    if name.startswith(HUB):
        # open_clip would take the newest revision, and go on without weights where none were found.
        name = f"local-dir:{fetch_tower(model.removeprefix(HUB), revision)}"
    elif name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not any((folder / file).is_file() for file in SAFE_WEIGHTS):
            raise CheckpointError(
                f"vision.model={model!r}: none of {', '.join(SAFE_WEIGHTS)} in {folder}; pickled "
                "weights (*.bin, *.pt, *.pth) are not loaded"
            )
    try:
        clip = open_clip.create_model(name, pretrained=pretrained, pretrained_text=False)
    except WEIGHTS_ERRORS as error:
        if pretrained is None:
            raise
        raise CheckpointError(
            f"vision tower {model!r}: the weights {pretrained!r} could not be fetched "
            f"({first_line(error)}); download them where there is a network, and give their file "
            "as model.vision_pretrained"
        ) from error
    return clip, open_clip.get_model_config(name)


def fetch_tower(repository: str, revision: str | None) -> Path:
    """The folder of a tower on the hub: open_clip's config and safetensors.

    Raises:
        CheckpointError: it cannot be fetched, or is no open_clip repository.
    """
    wanted = ["open_clip_config.json", "open_clip_*.safetensors"]
    folder = hub.fetch(repository, revision, what="vision tower", only=wanted)
    for pattern in wanted:
        if not list(folder.glob(pattern)):
            raise CheckpointError(
                f"vision tower {repository!r} has no {pattern} on the hub: choose one that is "
                "published for open_clip, in safetensors"
            )
    return folder


def tower_hash(tower: VisionTower) -> str:
    """sha256 over the tower's tensors, by sorted name."""
    return tensors_hash(tower.visual.state_dict())


@torch.no_grad()
def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_referenced(config: VisionConfig) -> VisionTower:
    """The tower that a saved model refers to.

    Raises:
        CheckpointError: its weights are not those the model was trained on.
    """
    assert config.source is not None
    if config.source["name"].startswith(MODEL_FOLDER):
        return load_from_model(config)
    tower, found_config = load_vision(
        config.model,
        config.pretrained,
        layer=config.layer,
        select=config.select,
        grid=config.grid,
        revision=config.source["revision"],
        dtype=config.dtype,
    )
    assert found_config.source is not None
    expected, found = config.source["sha256"], found_config.source["sha256"]
    if expected is not None and expected != found:
        raise CheckpointError(
            f"vision tower {config.model!r} has sha256 {found[:12]}…, this model was trained on "
            f"{expected[:12]}…: install the same weights, or save the model with its parts in full"
        )
    return tower


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """The tower's tensors in a model folder that holds them, by their names in `visual`.

    Raises:
        CheckpointError: there are none.
    """
    path, prefix = folder / "model.safetensors", "vision_tower.visual."
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"vision tower: {path} cannot be read ({error}); this model refers to the folder it "
            "was trained from: was it moved?"
        ) from error
    if not tensors:
        raise CheckpointError(f"vision tower: {path} holds none")
    return tensors


def load_from_model(config: VisionConfig) -> VisionTower:
    """The tower that lies in another model folder, named by `config.source`.

    Raises:
        CheckpointError: it is gone, or another one.
    """
    assert config.source is not None
    folder = Path(config.source["name"].removeprefix(MODEL_FOLDER))
    tensors = folder_tensors(folder)
    expected, found = config.source["sha256"], tensors_hash(tensors)
    if expected is not None and expected != found:
        raise CheckpointError(
            f"vision tower in {folder} has sha256 {found[:12]}…, this model was trained on "
            f"{expected[:12]}…: use the same weights"
        )
    tower = build_structure(config)
    tower.visual.load_state_dict(tensors)  # casts to the dtype it computes in
    return tower.eval()
