"""Collator: trees where questions may share their picture, rows where not, and nothing cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llava_mole.data.collator import Collator, count_batch
from llava_mole.data.packing import shared_prefix, single
from llava_mole.data.rows import Row
from llava_mole.data.sample import Sample, Turn
from llava_mole.errors import DataError
from tests.helpers import picture


@pytest.fixture(scope="module")
def processor(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")[1]


def sample(question: str, answer: str, *images: str, language: str = "en") -> Sample:
    turns = (Turn("user", "<image>" * len(images) + question), Turn("assistant", answer))
    return Sample(turns, tuple(Path(i) for i in images), "d", language, f"data.json:{len(answer)}")


def row(processor: Any, *samples: Sample) -> Row:
    encoded = tuple(processor.encode(s.messages()) for s in samples)
    return Row(samples[0].images, samples, encoded)


def collator(processor: Any, **options: Any) -> Collator:
    def load(paths: Any) -> Tensor:
        return torch.stack([torch.full((3, 2, 2), float(path.stem)) for path in paths])

    settings = {"share_prefix": True, "parrot": False, "max_length": 512, "load_pixels": load}
    return Collator(processor, **{**settings, **options})


def test_questions_about_one_picture_become_branches_of_a_tree(processor: Any) -> None:
    batch = collator(processor)(
        [row(processor, sample("A?", "x", "1"), sample("B?", "yy", "1", language="tr"))]
    )
    segments = batch["segment_ids"][0].tolist()
    a, b = (
        processor.encode(sample(*qa, "1").messages()).input_ids
        for qa in [("A?", "x"), ("B?", "yy")]
    )
    prefix = 1 + processor.tokens_per_image
    assert segments == [0] * prefix + [1] * (len(a) - prefix) + [2] * (len(b) - prefix)
    assert batch["input_ids"][0].tolist() == a + b[prefix:]
    assert batch["pixel_values"].shape[0] == 1
    assert batch["languages"] == ["en", "tr"]


def test_supervised_tokens_are_the_same_in_a_tree_and_in_rows(processor: Any) -> None:
    rows = [row(processor, sample("A?", "x", "1"), sample("B?", "yy", "1"))]
    tree, flat = (collator(processor, share_prefix=share)(rows) for share in (True, False))
    assert [int(x) for x in count_batch(tree)] == [int(x) for x in count_batch(flat)] == [5, 2]
    assert tree["labels"][tree["labels"] != -100].tolist() == (
        flat["labels"][flat["labels"] != -100].tolist()
    )
    assert flat["pixel_values"].shape[0] == 2
    assert "segment_ids" not in flat


def test_padding_is_marked_in_both_forms(processor: Any) -> None:
    rows = [row(processor, sample("A?", "x", "1")), row(processor, sample("A longer?", "x", "2"))]
    tree, flat = (collator(processor, share_prefix=share)(rows) for share in (True, False))
    short = len(rows[0].encoded[0].input_ids)
    assert (tree["segment_ids"][0, short:] == -1).all()
    assert (tree["segment_ids"][0, :short] == 0).all()
    assert flat["attention_mask"][0].sum() == short
    assert (flat["labels"][0, short:] == -100).all()
    assert (flat["input_ids"][0, short:] == processor.pad_id).all()


def test_pictures_follow_the_order_of_their_placeholders(processor: Any) -> None:
    rows = [
        row(processor, sample("A?", "x", "1", "2"), sample("B?", "y", "1", "2")),
        row(processor, sample("text only", "z")),
        row(processor, sample("C?", "x", "3")),
    ]
    batch = collator(processor)(rows)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1, 2, 3]
    flat = collator(processor, share_prefix=False)(rows)
    assert flat["pixel_values"][:, 0, 0, 0].tolist() == [1, 2, 1, 2, 3]


def test_conversations_that_start_differently_get_rows_of_their_own(processor: Any) -> None:
    late = Sample(
        (Turn("user", "Look: <image>"), Turn("assistant", "x")), (Path("1"),), "d", "en", "f:2"
    )
    batch = collator(processor)([row(processor, sample("A?", "x", "1"), late)])
    assert batch["input_ids"].shape[0] == 2
    assert batch["segment_ids"].max() == 0
    assert batch["pixel_values"].shape[0] == 2


def test_an_answer_before_the_last_image_is_never_shared(processor: Any) -> None:
    turns = (
        Turn("user", "<image>A?"), Turn("assistant", "x"),
        Turn("user", "<image>B?"), Turn("assistant", "y"),
    )  # fmt: skip
    two = Sample(turns, (Path("1"), Path("2")), "d", "en", "f:1")
    encoded = processor.encode(two.messages())
    assert shared_prefix([encoded, encoded], processor.image_token_id) == 0


def test_a_first_token_is_never_supervised_for_nothing_comes_before_it(processor: Any) -> None:
    said = Sample((Turn("assistant", "Hello"), Turn("user", "A?"), Turn("assistant", "x")),
                  (), "d", "en", "f:1")  # fmt: skip
    encoded = processor.encode(said.messages())
    tree = single(encoded, (), "en")
    assert tree.labels[0] == -100
    assert tree.labels[1:] == encoded.labels[1:]


def test_an_answer_right_after_the_image_is_never_shared(processor: Any) -> None:
    encoded = processor.encode(sample("A?", "x", "1").messages())
    start = 1 + processor.tokens_per_image
    broken = type(encoded)(encoded.input_ids, list(encoded.labels), encoded.questions)
    broken.labels[start] = broken.input_ids[start]
    assert shared_prefix([encoded, encoded], processor.image_token_id) == start
    assert shared_prefix([encoded, broken], processor.image_token_id) == 0


def test_with_parrot_each_image_comes_with_its_own_question(processor: Any) -> None:
    rows = [row(processor, sample("A?", "x", "1"), sample("Blue?", "y", "1"))]
    batch = collator(processor, share_prefix=False, parrot=True)(rows)
    assert len(batch["pixel_values"]) == len(batch["question_ids"]) == 2
    texts = [
        processor.decode(ids[mask])
        for ids, mask in zip(batch["question_ids"], batch["question_mask"], strict=True)
    ]
    assert texts == ["A?", "Blue?"]


def test_features_stand_in_for_pixels(processor: Any) -> None:
    batch = collator(processor, features=lambda paths: torch.zeros(len(paths), 5, 16))(
        [row(processor, sample("A?", "x", "1"))]
    )
    assert batch["image_features"].shape == (1, 5, 16)
    assert "pixel_values" not in batch


def test_an_answer_longer_than_the_context_is_refused_by_source(processor: Any) -> None:
    rows = [row(processor, sample("A?", "x" * 100, "1"))]
    with pytest.raises(DataError, match=r"data\.json:100: \d+ tokens, at most 64 fit"):
        collator(processor, max_length=64)(rows)


def test_a_conversation_without_supervised_token_is_refused_by_source(processor: Any) -> None:
    mute = Sample((Turn("user", "A?"),), (), "d", "en", "data.json:7")
    with pytest.raises(DataError, match=r"data\.json:7: no supervised token"):
        collator(processor)([row(processor, mute)])


def test_real_pictures_reach_the_model(
    processor: Any, tiny_model: Callable[..., Any], tmp_path: Path
) -> None:
    picture(0).save(tmp_path / "1.png")
    model, _ = tiny_model("llama", mole=True)
    batch = collator(
        processor, load_pixels=lambda paths: processor.image_processor(list(paths))["pixel_values"]
    )([row(processor, *(sample(q, "yes", str(tmp_path / "1.png")) for q in ("A?", "B?", "C?")))])
    del batch["languages"]
    assert torch.isfinite(model(**batch).loss)
