"""What `mole_step.py` times: models with PEFT's LoRA, our experts, or the loops of public code.

Each is checked before it is timed (`Arm.check`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, installed or not

from llava_mole.mole import (
    MoleConfig,
    adapter_of,
    add_experts,
    auxiliary_losses,
    mark_trainable,
    route_statistics,
)

TARGETS = ["gate_proj", "up_proj", "down_proj"]
SCALING = 2
"""lora_alpha / r of every arm."""
SIZES: dict[str, dict[str, Any]] = {
    "gemma3-270m": {
        "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256,
        "sliding_window": 512,
    },
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    "llama-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32,
    },
}  # fmt: skip
"""LLaMA 7B's shape is that of Vicuna, which both papers start from."""
PEFT = ("peft", "peft-default")
HALVED = ("shared", "beside")
"""Half of the rank is every token's: a shared expert, or PEFT's LoRA under the experts."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def base_model(size: str, vocabulary: int, layers: int | None = None, device: str = "cpu") -> Any:
    """bf16, frozen, the same random weights every time. `layers`: so many instead of the size's."""
    torch.manual_seed(0)
    kind = Gemma3TextConfig if size.startswith("gemma") else LlamaConfig
    shape = SIZES[size] if layers is None else {**SIZES[size], "num_hidden_layers": layers}
    config = kind(**shape, vocab_size=vocabulary, tie_word_embeddings=True)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.requires_grad_(False)


# ---------------------------------------------------------------------- baselines


class LoopExperts(nn.Module):
    """All experts on one linear as public code writes them; a router per MLP decides for it.

    `gathers`: each expert computes its own tokens only; else all experts compute all tokens.
    """

    def __init__(
        self, linear: nn.Linear, experts: int, rank: int, dtype: torch.dtype, gathers: bool
    ) -> None:
        super().__init__()
        self.gathers = gathers

        def matrices(*shape: int) -> nn.ParameterList:
            like = {"dtype": dtype, "device": linear.weight.device}
            return nn.ParameterList(torch.randn(shape, **like) for _ in range(experts))

        self.down = matrices(rank, linear.in_features)
        self.up = matrices(linear.out_features, rank)
        self.probs: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        assert self.probs is not None
        flat = x.reshape(-1, x.shape[-1])
        chosen = self.probs.argmax(dim=1)
        out = flat.new_zeros(len(flat), len(self.up[0]))
        for expert, (a, b) in enumerate(zip(self.down, self.up, strict=True)):
            a, b = a.to(x.dtype), b.to(x.dtype)
            if self.gathers:
                rows = (chosen == expert).nonzero().squeeze(1)
                update = F.linear(F.linear(flat[rows], a), b) * SCALING
                out = out.index_add(0, rows, update)
            else:
                on = (chosen == expert).to(x.dtype).unsqueeze(1)
                out = out + F.linear(F.linear(flat, a), b) * SCALING * on
        return out.view(*x.shape[:-1], -1)


def add_loops(model: nn.Module, experts: int, rank: int, dtype: torch.dtype, gathers: bool) -> None:
    """Experts of `LoopExperts` on every MLP, balance loss included (`loop_balance`)."""
    for module in list(model.modules()):
        if not all(hasattr(module, name) for name in TARGETS):
            continue
        linears = [getattr(module, name) for name in TARGETS]
        router = nn.Linear(linears[0].in_features, experts, device=linears[0].weight.device)
        loops = [LoopExperts(linear, experts, rank, dtype, gathers) for linear in linears]
        module.loop_router = router
        module.loops = nn.ModuleList(loops)

        def route(block: nn.Module, args: Any, router: Any = router, loops: Any = loops) -> None:
            probs = router(args[0].reshape(-1, args[0].shape[-1]).float()).softmax(-1)
            for loop in loops:
                loop.probs = probs
            block.probs = probs

        module.register_forward_pre_hook(route)
        for linear, loop in zip(linears, loops, strict=True):
            linear.register_forward_hook(lambda _, args, out, loop=loop: out + loop(args[0]))


def loop_balance(model: nn.Module) -> Tensor:
    """LLaVA-MoLE's balance loss of a model with `LoopExperts`."""
    blocks = [module for module in model.modules() if hasattr(module, "loop_router")]
    probs = torch.stack([block.probs for block in blocks]).mean(0)  # type: ignore[arg-type]
    chosen = F.one_hot(probs.argmax(1), probs.shape[1]).float()
    return 0.01 * (probs.mean(0) * chosen.mean(0)).sum()


# ---------------------------------------------------------------------- arms


class Arm:
    """One way to adapt a model.

    Args:
        name: see the module.
        model: with frozen base.
        dtype: of the adapters.
        rank: of PEFT's LoRA, and of each expert; see `HALVED`.
    """

    def __init__(self, name: str, model: nn.Module, dtype: torch.dtype, rank: int = 16) -> None:
        self.name, self.rank = name, rank
        self.experts, self.kind = parse(name)
        self.model: Any = model
        if self.kind == "peft-default":
            dtype = torch.float32
        if self.kind in PEFT:
            self.add_lora(rank, dtype)
        elif self.kind == "beside":
            self.add_lora(rank // 2, dtype)
            add_experts(self.model, self.config(dtype))
            for key, parameter in self.model.named_parameters():
                parameter.requires_grad_(".lora_" in key or ".mole_" in key)
        elif self.kind in ("loop", "gather"):
            add_loops(model, self.experts, rank, dtype, gathers=self.kind == "gather")
        elif self.kind != "base":
            add_experts(model, self.config(dtype, self.kind))
            mark_trainable(model)
        self.awaken()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.trained = sum(p.numel() for p in trained)
        self.bytes = sum(p.numel() * p.element_size() for p in trained)
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None

    def add_lora(self, rank: int, dtype: torch.dtype) -> None:
        lora = LoraConfig(r=rank, lora_alpha=SCALING * rank, target_modules=TARGETS)
        self.model = get_peft_model(self.model, lora, autocast_adapter_dtype=False)
        for key, parameter in self.model.named_parameters():
            if ".lora_" in key:
                parameter.data = parameter.data.to(dtype)

    def config(self, dtype: torch.dtype, kernel: str = "auto") -> MoleConfig:
        halved = self.kind in HALVED
        rank = self.rank // 2 if halved else self.rank
        return MoleConfig(
            num_experts=self.experts,
            r=rank,
            lora_alpha=SCALING * rank,
            target_modules=TARGETS,
            adapter_dtype=str(dtype).removeprefix("torch."),
            kernel="auto" if halved else kernel,
            shared_expert_r=rank if self.kind == "shared" else 0,
        )

    @torch.no_grad()
    def awaken(self) -> None:
        """B is not zero: an adapter that does nothing must not look fast."""
        generator = torch.Generator().manual_seed(1)
        for key, parameter in self.model.named_parameters():
            if "lora_" in key or ".loops." in key:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.02 * noise)

    def loss(self, ids: Tensor) -> Tensor:
        if self.kind == "base":
            # Nothing to train: the gradient goes down to the embeddings, as with any adapter.
            embeds = self.model.get_input_embeddings()(ids).detach().requires_grad_()
            return self.model(inputs_embeds=embeds, labels=ids, use_cache=False).loss
        loss = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        if self.kind in ("loop", "gather"):
            return loss + loop_balance(self.model)
        if self.kind not in PEFT:
            return loss + sum(auxiliary_losses(self.model).values())
        return loss

    def step(self, ids: Tensor) -> None:
        self.loss(ids).backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def check(self, ids: Tensor, context: Callable[[], Any]) -> str:
        """Raises RuntimeError where the arm does not do what it is timed for."""
        with context():
            self.loss(ids).backward()
        grads = {k: p.grad for k, p in self.model.named_parameters() if p.requires_grad}
        empty = [key for key, grad in grads.items() if grad is None or not bool(grad.any())]
        note = ""
        if self.kind in ("base", *PEFT):
            if empty:
                raise RuntimeError(f"{self.name}: no gradient for {empty[0]}")
        elif self.kind in ("loop", "gather"):
            if any(".loop_router." in key for key in empty):
                raise RuntimeError(f"{self.name}: a router without gradient")
        else:
            if any(".lora_" in key and ".mole_" not in key for key in empty):
                raise RuntimeError(f"{self.name}: PEFT's LoRA without gradient")
            note = self.check_experts(ids, context)
        for parameter in self.model.parameters():
            parameter.grad = None
        return note

    def check_experts(self, ids: Tensor, context: Callable[[], Any]) -> str:
        use = {use.name: use for use in route_statistics(self.model)}
        for name, bank in adapter_of(self.model).banks.items():
            block = name.rpartition(".")[0]
            for matrix in (bank.lora_A, bank.lora_B):
                assert matrix is not None
                assert matrix.grad is not None
                by_expert = matrix.grad[bank.shared_rank :].view(self.experts, -1).any(dim=1)
                if bank.shared_rank and not matrix.grad[: bank.shared_rank].any():
                    raise RuntimeError(f"{self.name}: {name}, a shared expert without gradient")
                if not torch.equal(by_expert, use[block].load > 0):
                    raise RuntimeError(f"{self.name}: {name} trains other experts than were chosen")
        blocks = [m for m in self.model.modules() if all(hasattr(m, n) for n in TARGETS)]
        generator = torch.Generator().manual_seed(3)
        size = (*ids.shape, blocks[0].gate_proj.in_features)
        x = torch.randn(size, generator=generator).to(ids.device, torch.bfloat16)
        worst = 0.0
        with torch.no_grad(), context():
            # Block by block: through the whole model, roundings change a route here and there.
            for block in blocks:
                found = block(x).float()
                with reference(self.model):
                    expected = block(x).float()
                worst = max(worst, float((found - expected).norm() / expected.norm()))
        if worst > 0.01:  # each output is rounded to 8 bits once or twice
            raise RuntimeError(f"{self.name}: a block differs from reference by {worst:.3f}")
        loads = torch.stack([one.load for one in use.values()])
        return (
            f"reference within {worst:.4f}, "
            f"{int((loads > 0).sum(1).float().median())}/{self.experts} experts used a layer"
        )


@contextmanager
def reference(model: nn.Module) -> Iterator[None]:
    """Inside, the experts are computed by the readable kernel."""
    adapter = adapter_of(model)
    shapes = []
    for module in model.modules():
        holder = module._modules.get("mole_router")
        if holder is not None:
            shapes.append((holder, dict(holder.shapes)))
            holder.shapes.update(dict.fromkeys(holder.shapes))
    kernels = {bank: bank.kernel for bank in adapter.banks.values()}
    for bank in kernels:
        bank.kernel = "reference"
    try:
        yield
    finally:
        for bank, kernel in kernels.items():
            bank.kernel = kernel
        for holder, before in shapes:
            holder.shapes.update(before)


def parse(name: str) -> tuple[int, str]:
    """ "E16-tiled" -> (16, "tiled"); "E16" -> (16, "auto"); "peft" -> (0, "peft")."""
    if name in ("base", *PEFT):
        return 0, name
    head, _, kind = name.partition("-")
    if not head.startswith("E") or not head[1:].isdigit():
        raise SystemExit(
            f"arm {name!r}: base, peft, E4, E4-masked, E4-shared, E4-beside, E4-loop, E4-gather"
        )
    return int(head[1:]), kind or "auto"
