"""`training.push_to_hub`: the model folder, as `save_pretrained` writes it, to a hub repository.

transformers' Trainer would push each stage's own folder with its pickled arguments, and would copy
only files at a checkpoint's top, so that experts and LoRA stay behind. Its option names are kept;
what is sent is a model folder: the finished one, and with `hub_strategy: every_save` that of each
checkpoint before, without the optimizer's state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback

from llava_mole import ranks
from llava_mole.errors import ConfigError
from llava_mole.hub import HUB_ERRORS, first_line

logger = logging.getLogger(__name__)

KEYS = (
    "push_to_hub", "hub_model_id", "hub_private_repo", "hub_strategy", "hub_token", "hub_revision",
    "hub_always_push",
)  # fmt: skip
STRATEGIES = ("end", "every_save")
STATE = (
    "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json", "training_args.bin",
    "elapsed.json", ".*", "manifest.json",
)  # fmt: skip
"""Of a checkpoint: what a run needs to go on, and a user of the model does not."""


@dataclass(frozen=True)
class Push:
    """Where a run's model goes."""

    repository: str
    private: bool | None = None
    strategy: str = "end"
    revision: str | None = None
    always: bool = False


def push_of(training: Mapping[str, Any], output_dir: str) -> Push | None:
    """What a recipe's `training:` says of the hub; None where nothing is pushed."""
    if not training.get("push_to_hub"):
        return None
    return Push(
        training.get("hub_model_id") or Path(output_dir).absolute().name,
        training.get("hub_private_repo"),
        str(training.get("hub_strategy", "end")),
        training.get("hub_revision"),
        bool(training.get("hub_always_push", False)),
    )


def hub_problems(training: Mapping[str, Any], path: str, *, stage: bool) -> list[str]:
    """What is wrong with these keys; `stage`: they stand in a stage's `training:`."""
    given = [key for key in KEYS if key in training]
    if stage:
        where = "say it in the recipe's own training:, a run is one model"
        return [f"{path}.{key}: {where}" for key in given]
    problems = []
    strategy = training.get("hub_strategy", "end")
    if strategy not in STRATEGIES:
        problems.append(
            f"{path}.hub_strategy={strategy!r}: allowed are {', '.join(STRATEGIES)}; optimizer "
            "states stay here, where a stopped run goes on"
        )
    if "hub_token" in given:
        problems.append(
            f"{path}.hub_token: no secrets in a recipe, it is copied to OUT/recipe.json; say `hf "
            "auth login`, or HF_TOKEN in the environment"
        )
    if given and not training.get("push_to_hub"):
        problems.append(f"{path}.{given[0]}: not read without push_to_hub: true")
    return problems


def prepare(push: Push) -> str:
    """Make the repository before anything is trained; its full name.

    Raises:
        ConfigError: nobody is logged in, the hub cannot be reached or does not allow it.
    """
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            "training.push_to_hub: the hub is switched off (HF_HUB_OFFLINE); leave push_to_hub "
            "out, and later `hf upload REPOSITORY OUT/model`"
        )
    if get_token() is None:
        raise ConfigError(
            "training.push_to_hub: no token on this machine; `hf auth login` with one that may "
            "write, or HF_TOKEN in the environment"
        )
    api = HfApi()
    try:
        made = api.create_repo(push.repository, private=push.private, exist_ok=True)
        if push.revision is not None:
            api.create_branch(made.repo_id, branch=push.revision, exist_ok=True)
    except HUB_ERRORS as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        hint = "; the token must be allowed to write there" if status in (401, 403) else ""
        raise ConfigError(
            f"training.push_to_hub: {push.repository!r} cannot be made at {constants.ENDPOINT} "
            f"({first_line(error)}){hint}"
        ) from error
    return made.repo_id


def upload(push: Push, repository: str, folder: Path, message: str) -> Future[CommitInfo]:
    """Send a model folder, in the background; what the repository has beside is left alone."""
    return HfApi().upload_folder(
        repo_id=repository,
        folder_path=folder,
        commit_message=message,
        revision=push.revision,
        ignore_patterns=list(STATE),
        run_as_future=True,
    )


def push_finished(push: Push, repository: str, folder: Path) -> None:
    """The last act of a run. A hub that fails now is a warning: the model is on disk."""
    try:
        done = upload(push, repository, folder, "Trained model").result()
    except HUB_ERRORS as error:
        logger.warning(
            "the model is in %s, but could not be pushed (%s); later: `hf upload %s %s`",
            folder, first_line(error), repository, folder,
        )  # fmt: skip
        return
    logger.info("pushed to %s", done.commit_url)


class PushCheckpoints(TrainerCallback):
    """`hub_strategy: every_save`: sends each checkpoint's model while training goes on."""

    def __init__(self, push: Push, repository: str) -> None:
        self.push = push
        self.repository = repository
        self.running: Future[CommitInfo] | None = None

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        busy = self.running is not None and not self.running.done()
        if not ranks.is_main() or not folder.is_dir() or (busy and not self.push.always):
            return
        self.finish()
        message = f"Training in progress, step {state.global_step}"
        self.running = upload(self.push, self.repository, folder, message)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.finish()

    def finish(self) -> None:
        """Wait for the last one, whose failure is a warning too."""
        if self.running is None:
            return
        try:
            self.running.result()
        except HUB_ERRORS as error:
            logger.warning("a checkpoint could not be pushed (%s)", first_line(error))
        self.running = None
