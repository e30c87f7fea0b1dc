"""Verdicts: from answers whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import yaml

from llava_mole.errors import ConfigError
from llava_mole.evaluation.statistics import holm, seed_interval
from llava_mole.sweeping.answers import read_answers
from llava_mole.sweeping.claims import (
    EXPLORATORY,
    NOT_DECIDABLE,
    NOT_SUPPORTED,
    SUPPORTED,
    Verdict,
    decide,
)
from llava_mole.sweeping.sweep_file import Sweep, read_sweep
from llava_mole.sweeping.tables import marks, marks_table

AB = {"first": "b", "second": "a"}


def constant(**rates: float) -> Callable[..., float]:
    """Arm -> chance of a right answer, wherever."""
    return lambda arm, seed, domain, language, picture: rates[arm]


def verdict(written: Callable[..., Sweep], rate: Any, claim: Any, **more: Any) -> Verdict:
    (found,) = verdicts(written, rate, {"it": claim}, **more)
    return found


def verdicts(
    written: Callable[..., Sweep], rate: Any, claims: dict[str, Any], **more: Any
) -> list[Verdict]:
    sweep = written(rate, claims=claims, **more)
    return decide(sweep, read_answers(sweep, "dev"))


def test_a_clear_difference_is_supported_in_its_direction_only(written):
    claims = {
        "up": AB,
        "down": AB | {"direction": "less"},
        "apart": AB | {"direction": "different"},
    }
    up, down, apart = verdicts(written, constant(a=0.4, b=0.7), claims)
    assert (up.verdict, down.verdict, apart.verdict) == (SUPPORTED, NOT_SUPPORTED, SUPPORTED)
    assert up.low > 0
    assert up.low < 0.3 < up.high
    assert up.p_holm < 0.05
    assert down.p == 1
    assert (len(up.seeds), up.pictures, up.questions) == (5, 120, 240)
    assert np.mean(up.by_seed) == pytest.approx(up.mean)
    assert up.bootstrap[0] < up.mean < up.bootstrap[1]


def test_no_difference_is_not_decidable_until_what_matters_is_excluded(written):
    claims = {"open": AB, "small": AB | {"smallest": 0.15},
              "same": AB | {"direction": "different", "smallest": 0.15}}  # fmt: skip
    found = verdicts(written, constant(a=0.5, b=0.5), claims)
    assert [one.verdict for one in found] == [NOT_DECIDABLE, NOT_SUPPORTED, NOT_SUPPORTED]
    assert "not shown" in found[0].reason
    assert "15.0 points is excluded" in found[1].reason


def test_a_difference_too_small_to_matter_does_not_support(written):
    claim = AB | {"smallest": 0.4}
    found = verdict(written, constant(a=0.4, b=0.6), claim)
    assert found.low > 0
    assert found.verdict == NOT_SUPPORTED


def test_the_interval_is_paired_by_seed_and_over_domains_of_languages(written):
    sweep = written(constant(a=0.4, b=0.7), claims={"it": AB})
    answers = read_answers(sweep, "dev")
    (found,) = decide(sweep, answers)
    difference = np.array(
        [answers.shown["b", seed] - answers.shown["a", seed] for seed in sweep.seeds]
    )
    expected = seed_interval(
        difference,
        [question.picture for question in answers.questions],
        [question.language for question in answers.questions],
        [question.domain for question in answers.questions],
    )
    assert (found.mean, found.low) == pytest.approx((expected.mean, expected.low), abs=1e-12)
    assert found.p == pytest.approx(expected.p)


def trade(arm, seed, domain, language, picture):
    """b gains much on one domain and loses on the other."""
    if arm == "a":
        return 0.5
    return 0.95 if domain == "shapes" else 0.35


def test_a_mean_that_hides_a_loss_is_found_out_by_no_worse(written):
    claims = {"mean": AB, "each": AB | {"no_worse": 0.02}}
    mean, each = verdicts(written, trade, claims)
    assert mean.verdict == SUPPORTED
    assert each.verdict == NOT_SUPPORTED
    assert each.worse == ("noise",)
    assert each.weakest == "no worse in noise"
    assert each.p == 1


def test_no_worse_has_to_be_shown_not_just_left_open(written):
    claims = {"wide": AB | {"no_worse": 0.5}, "narrow": AB | {"no_worse": 0.0}}
    rate = lambda arm, seed, domain, *_: 0.9 if (arm, domain) == ("b", "shapes") else 0.5  # noqa: E731
    wide, narrow = verdicts(written, rate, claims)
    assert wide.verdict == SUPPORTED
    assert narrow.verdict == NOT_DECIDABLE
    assert narrow.reason == "no worse in noise: not shown"


def test_being_no_worse_is_a_claim_of_its_own(written):
    margin = {"direction": "not_worse", "no_worse": 0.1}
    claims = {"alike": AB | margin, "narrow": AB | margin | {"no_worse": 0.01}}
    alike, narrow = verdicts(written, constant(a=0.5, b=0.5), claims, pictures=150)
    assert alike.verdict == SUPPORTED
    assert alike.low < 0
    assert narrow.verdict == NOT_DECIDABLE
    (behind,) = verdicts(written, constant(a=0.7, b=0.4), {"behind": AB | margin})
    assert behind.verdict == NOT_SUPPORTED
    assert behind.p == 1
    assert "the mean is worse by more than 10.0 points" in behind.reason


def test_claims_may_be_about_some_domains_and_languages(written):
    def rate(arm, seed, domain, language, picture):
        return 0.9 if (arm, domain, language) == ("b", "shapes", "tr") else 0.5

    claims = {
        "there": AB | {"domains": ["shapes"], "languages": ["tr"]},
        "other": AB | {"domains": ["noise"], "smallest": 0.2},
        "none": AB | {"kinds": ["naming"], "languages": ["zh"]},
    }
    there, other, none = verdicts(written, rate, claims)
    assert there.verdict == SUPPORTED
    assert list(there.domains) == ["shapes"]
    assert there.questions == 60
    assert other.verdict == NOT_SUPPORTED
    assert none.reason.startswith("no question is of its domains")


def test_a_difference_of_differences_is_one_claim(written):
    """Experts gain 0.3 in the mixture and nothing alone."""
    rates = constant(moe=0.8, lora=0.5, moe_alone=0.6, lora_alone=0.6)
    claim = {"first": {"moe": 1, "lora": -1}, "second": {"moe_alone": 1, "lora_alone": -1}}
    arms = {arm: {} for arm in ("moe", "lora", "moe_alone", "lora_alone")}
    found = verdict(written, rates, claim, arms=arms)
    assert found.verdict == SUPPORTED
    assert found.low < 0.3 < found.high


def test_specialists_side_by_side_count_as_one_arm(written):
    def rate(arm, seed, domain, language, picture):
        return 0.9 if arm.removeprefix("only_") == domain else 0.4

    alone = {"other_data": "one domain alone"}
    composed = {"specialists": {"shapes": "only_shapes", "noise": "only_noise"}}
    claim = {"first": "specialists", "second": "mixed"}
    found = verdict(written, rate, claim, composed=composed,
                    arms={"mixed": {}, "only_shapes": alone, "only_noise": alone})  # fmt: skip
    assert found.verdict == SUPPORTED
    assert found.domains["shapes"][0] == pytest.approx(0.5, abs=0.1)
    assert found.domains["noise"][0] == pytest.approx(0.5, abs=0.1)


def test_a_specialist_need_not_be_scored_on_what_it_is_not_for(written):
    """The same verdict, and no figure for a domain that it was not asked about."""
    rate = constant(mixed=0.4, only_shapes=0.8, only_noise=0.9)
    composed = {"specialists": {"shapes": "only_shapes", "noise": "only_noise"}}
    claim = {"first": "specialists", "second": "mixed"}
    alone = {name: {"other_data": "one domain alone", "domains": [name.removeprefix("only_")]}
             for name in ("only_shapes", "only_noise")}  # fmt: skip
    sweep = written(rate, claims={"it": claim}, composed=composed, arms={"mixed": {}, **alone})
    answers = read_answers(sweep, "dev")
    (found,) = decide(sweep, answers)
    assert found.verdict == SUPPORTED
    assert found.domains["shapes"][0] == pytest.approx(0.4, abs=0.1)
    assert found.domains["noise"][0] == pytest.approx(0.5, abs=0.1)
    assert len(answers.questions) == 240
    assert np.isnan(answers.shown["only_shapes", 0]).sum() == 120
    rows = marks(sweep, answers)
    named = {(row.arm, row.name) for row in rows if row.by in ("all", "domain")}
    both = {(arm, part) for arm in ("mixed", "specialists") for part in ("all", "shapes", "noise")}
    assert named == both | {("only_shapes", "shapes"), ("only_noise", "noise")}
    assert "| only_noise | – |" in marks_table(rows, "domain")
    assert not [row for row in rows if row.arm == "only_noise" and row.by == "language"]


def test_a_specialist_that_is_done_first_has_no_mean_over_domains(written):
    alone = {"other_data": "one domain alone", "domains": ["noise"]}
    sweep = written(constant(mixed=0.4, only=0.8), arms={"mixed": {}, "only": alone})
    for seed in sweep.seeds:
        (sweep.out / "runs" / "mixed" / f"seed-{seed}" / "done.json").unlink()
    rows = marks(sweep, read_answers(sweep, "dev"))
    assert {(row.by, row.name) for row in rows} == {("domain", "noise"), ("kind", "noise: naming")}


def test_the_gain_is_what_the_picture_adds(written):
    claim = {"first": "b", "second": "a", "measure": "gain"}
    found = verdict(written, constant(a=0.5, b=0.9), claim, withheld=True)
    assert found.verdict == SUPPORTED
    assert found.mean == pytest.approx(0.4, abs=0.1)


# ---------------------------------------------------------------------- what cannot be decided


def test_a_missing_run_leaves_the_claim_open_and_shows_what_is_there(written):
    sweep = written(constant(a=0.2, b=0.9), claims={"it": AB})
    (sweep.out / "runs" / "b" / "seed-3" / "done.json").unlink()
    (found,) = decide(sweep, read_answers(sweep, "dev"))
    assert found.verdict == NOT_DECIDABLE
    assert found.reason == "not scored on dev: b/seed-3"
    assert found.p_holm is None
    assert found.seeds == (0, 1, 2, 4)
    assert found.low > 0.4


def test_one_seed_decides_nothing(written):
    found = verdict(written, constant(a=0.2, b=0.9), AB, seeds=(0,))
    assert found.verdict == NOT_DECIDABLE
    assert "one seed" in found.reason


def test_runs_that_saw_other_samples_are_not_compared_unless_declared(written):
    orders = {("b", 2): "another"}
    found = verdict(written, constant(a=0.2, b=0.9), AB, orders=orders)
    assert found.verdict == NOT_DECIDABLE
    assert found.mean is None
    assert "b/seed-2 and a/seed-2 did not see the same samples" in found.reason
    declared = verdict(written, constant(a=0.2, b=0.9), AB, orders=orders,
                       arms={"a": {}, "b": {"other_data": "shuffled anew"}})  # fmt: skip
    assert declared.verdict == SUPPORTED


def test_several_claims_are_corrected_for_their_number(written):
    claims = {f"c{number}": AB for number in range(24)}
    found = verdicts(written, constant(a=0.50, b=0.585), claims)
    assert [one.p_holm for one in found] == holm([one.p for one in found])
    (alone,) = verdicts(written, constant(a=0.50, b=0.585), {"it": AB})
    assert alone.p < 0.05 < found[0].p_holm
    assert alone.verdict == SUPPORTED
    assert found[0].verdict == NOT_DECIDABLE
    assert found[0].reason == "the difference: only before the correction for several claims"


def test_an_exploratory_claim_decides_nothing_and_does_not_count(written):
    claims = {
        "made": AB,
        "seen": AB | {"exploratory": True},
    }
    made, seen = verdicts(written, constant(a=0.4, b=0.7), claims)
    assert (made.verdict, made.p_holm) == (SUPPORTED, made.p)
    assert (seen.verdict, seen.p_holm) == (EXPLORATORY, None)
    assert (seen.low, seen.high) == (made.low, made.high)
    assert 0 < seen.p < 0.05


def test_an_exploratory_claim_of_several_parts_says_whose_its_p_is(written):
    found = verdict(written, trade, AB | {"exploratory": True, "no_worse": 0.02})
    assert (found.verdict, found.reason) == (EXPLORATORY, "p: no worse in noise")
    assert found.p == 1


def test_sides_whose_weights_do_not_match_are_refused(written, tmp_path):
    written(constant(a=0.5, b=0.5))
    values = yaml.safe_load((tmp_path / "written.yaml").read_text("utf-8"))
    values["claims"] = {"it": {"first": {"a": 1, "b": 1}, "second": "a"}}
    (tmp_path / "written.yaml").write_text(yaml.safe_dump(values), "utf-8")
    with pytest.raises(ConfigError, match="add up to 2, of the second to 1"):
        read_sweep(tmp_path / "written.yaml")
