"""The planner: shares, partition over ranks, resume, epochs, stops, limits; all by properties."""

import subprocess
import sys

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, SequentialSampler

from llava_mole.data.mixture import Mixture, PlannedSource, share_of_rank
from llava_mole.data.random_order import key_of, permuted, uniform
from llava_mole.data.shares import held, largest_remainders
from llava_mole.errors import ConfigError


def source(name: str, pictures: int, samples: int = 1, **options) -> PlannedSource:
    return PlannedSource(name, np.full(pictures, samples, dtype=np.int32), **options)


sizes = st.lists(st.integers(1, 3000), min_size=1, max_size=8)
weights = st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes, weights, st.integers(1, 20_000), st.integers(0, 9))
def test_shares_are_within_one_sample_of_the_request_after_a_pass(counts, weight, length, seed):
    sources = [source(f"s{i}", n, weight=weight[i]) for i, n in enumerate(counts)]
    mixture = Mixture(sources, stop=length, seed=seed)
    drawn = np.bincount(mixture.plan(0, mixture.rows).source, minlength=len(counts))
    asked = np.array(weight[: len(counts)]) / sum(weight[: len(counts)]) * length
    assert mixture.rows == length
    assert (np.abs(drawn - asked) < 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(sizes, weights, st.integers(2000, 30_000))
def test_shares_are_within_one_sample_of_the_pass_at_every_block(counts, weight, length):
    sources = [source(f"s{i}", n, weight=weight[i]) for i, n in enumerate(counts)]
    mixture = Mixture(sources, stop=length)
    plan = mixture.plan(0, mixture.rows)
    for end in range(mixture.block, mixture.rows + 1, mixture.block):
        drawn = np.bincount(plan.source[:end], minlength=len(counts))
        assert (np.abs(drawn - mixture.quotas * end / mixture.rows) < 1).all()
        assert (drawn == mixture.drawn_before(end)).all()


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(1, 7), st.data())
def test_a_resumed_order_is_the_uninterrupted_one(counts, questions, data):
    sources = [source(f"s{i}", n, samples=1 + i) for i, n in enumerate(counts)]
    mixture = Mixture(sources, questions=questions)
    end = 2 * mixture.rows + 5  # into the third pass
    whole = mixture.plan(0, end)
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    part = Mixture(sources, questions=questions).plan(start, stop)
    for key in ("source", "group", "epoch", "visit"):
        assert (getattr(part, key) == getattr(whole, key)[start:stop]).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 500), st.integers(1, 16), st.integers(1, 9))
def test_ranks_take_every_row_once(rows, ranks, rows_per_rank):
    taken = [share_of_rank(rows, rank, ranks, rows_per_rank) for rank in range(ranks)]
    assert sorted(np.concatenate(taken).tolist()) == list(range(rows))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 16])
def test_a_step_holds_the_same_rows_on_any_number_of_ranks(ranks):
    per_step = 240
    taken = [share_of_rank(2400, rank, ranks, per_step // ranks) for rank in range(ranks)]
    for step in range(2400 // per_step):
        here = slice(step * (per_step // ranks), (step + 1) * (per_step // ranks))
        rows = sorted(np.concatenate([rank[here] for rank in taken]).tolist())
        assert rows == list(range(step * per_step, (step + 1) * per_step))


@pytest.mark.parametrize("ranks", range(1, 17))
@pytest.mark.parametrize("rows_per_rank", [1, 3])
def test_the_ranks_of_a_training_take_the_rows_that_the_planner_says(ranks, rows_per_rank):
    # The Trainer's loader: rows in order, and accelerate deals whole micro-batches to the ranks.
    rows = 5 * ranks * rows_per_rank
    batches = BatchSampler(SequentialSampler(range(rows)), rows_per_rank, drop_last=False)
    for rank in range(ranks):
        dealt = [row for batch in BatchSamplerShard(batches, ranks, rank) for row in batch]
        assert dealt == share_of_rank(rows, rank, ranks, rows_per_rank).tolist()


def test_of_a_capped_source_the_cap_is_all():
    mixture = Mixture([source("large", 3000), source("capped", 3000, cap=100)])
    assert mixture.quotas.tolist() == [3000, 100]


@settings(max_examples=60, deadline=None)
@given(sizes, weights, st.integers(0, 9))
def test_with_limits_a_pass_is_the_shortest_that_sees_all(counts, weight, seed):
    sources = [source(f"s{i}", n, weight=weight[i], repeat_limit=1.5) for i, n in enumerate(counts)]
    try:
        mixture = Mixture(sources, seed=seed)
    except ConfigError:
        return  # so rare that blocks would not fit
    assert (mixture.quotas >= np.array(counts)).all()
    assert (mixture.quotas <= np.floor(1.5 * np.array(counts))).all()
    # Each share is rounded, the held ones' too.
    fewer = mixture.rows - max(2 * len(counts) + 1, mixture.rows // 20)
    if (mixture.quotas < mixture.wanted).any() and fewer >= sum(counts):
        limits = np.floor(1.5 * np.array(counts))
        given = held(largest_remainders(mixture.requested * fewer, fewer), limits)
        assert (given < np.array(counts)).any()


@pytest.mark.parametrize("stop", ["all_exhausted", 20_000])
def test_visits_that_draw_anew_count_as_what_they_draw(stop):
    pictures = np.full(20, 7, dtype=np.int32)  # two visits an epoch, of six questions each
    weighted = PlannedSource("weighted", pictures, weight=1, anew=True)
    mixture = Mixture([weighted, source("plain", 140, weight=1)], questions=6, stop=stop)
    drawn = mixture.quotas * [6, 1]
    assert abs(drawn[0] / drawn.sum() - 0.5) < 6 / drawn.sum()
    if stop != "all_exhausted":
        assert abs(drawn.sum() - stop) <= 6


def test_a_repeat_limit_counts_samples_that_visits_draw_anew():
    weighted = PlannedSource(
        "weighted", np.full(20, 7, dtype=np.int32), samples=10_000, repeat_limit=2, anew=True
    )
    plain = PlannedSource("plain", np.ones(140, dtype=np.int32), samples=10_000)
    mixture = Mixture([weighted, plain], questions=6)
    assert 270 <= mixture.quotas[0] * 6 <= 280  # twice 140


def test_a_source_so_rare_that_blocks_would_not_fit_into_memory_is_refused():
    sources = [source("often", 140, weight=1.0), source("hardly", 140, weight=1e-7)]
    with pytest.raises(ConfigError, match=r"'hardly' would come once in 10,0.* rows"):
        Mixture(sources)


def test_every_sample_of_a_source_comes_once_an_epoch_and_epochs_differ():
    mixture = Mixture([source("a", 500), source("b", 300)])
    orders = []
    for epoch in (0, 1):
        plan = mixture.plan(epoch * 800, (epoch + 1) * 800)
        groups = plan.group[plan.source == 0]
        assert sorted(groups.tolist()) == list(range(500))
        orders.append(groups.tolist())
    assert orders[0] != orders[1]


def test_a_picture_with_many_samples_is_visited_evenly_through_an_epoch():
    sizes = np.array([1] * 600 + [30] * 20, dtype=np.int32)
    mixture = Mixture([PlannedSource("a", sizes)], questions=3)
    plan = mixture.plan(0, mixture.rows)
    assert mixture.rows == 600 + 20 * 10
    for half in (slice(0, 400), slice(400, 800)):
        seen = np.bincount(plan.group[half], minlength=620)[600:]
        assert ((seen >= 4) & (seen <= 6)).all()  # of ten; the middle one may fall on either side
    visits = {(g, v) for g, v in zip(plan.group, plan.visit, strict=True)}
    assert len(visits) == mixture.rows


def test_another_source_does_not_change_a_sources_own_order():
    alone = Mixture([source("a", 100)]).plan(0, 100)
    beside = Mixture([source("b", 50), source("a", 100)]).plan(0, 150)
    assert alone.group.tolist() == beside.group[beside.source == 1].tolist()


def test_seeds_give_different_orders():
    orders = {tuple(Mixture([source("a", 50)], seed=s).plan(0, 50).group) for s in range(20)}
    assert len(orders) == 20


@settings(max_examples=40, deadline=None)
@given(sizes, st.floats(1, 1e6))
def test_temperature_lies_between_sizes_and_evenness(counts, temperature):
    sources = [source(f"s{i}", n) for i, n in enumerate(counts)]
    at = Mixture(sources, temperature=temperature).requested
    by_size = np.array(counts) / sum(counts)
    even = 1 / len(counts)
    assert at.sum() == pytest.approx(1)
    assert at.max() <= max(by_size.max(), even) + 1e-12
    assert at.min() >= min(by_size.min(), even) - 1e-12
    assert Mixture(sources, temperature=1.0).requested == pytest.approx(by_size)
    assert Mixture(sources, temperature=1e12).requested == pytest.approx(even)


def test_temperature_follows_its_formula():
    mixture = Mixture([source("a", 100), source("b", 10_000)], temperature=2)
    assert mixture.requested == pytest.approx([10 / 110, 100 / 110])


def test_a_cap_limits_the_size_that_counts():
    mixture = Mixture([source("a", 100), source("b", 10_000, cap=300)])
    assert mixture.requested == pytest.approx([0.25, 0.75])


def test_all_exhausted_sees_every_sample_and_first_exhausted_repeats_none():
    sources = [source("a", 90, weight=1.0), source("b", 400, weight=1.0)]
    every = Mixture(sources, stop="all_exhausted")
    assert every.quotas.tolist() == [400, 400]
    first = Mixture(sources, stop="first_exhausted")
    assert first.quotas.tolist() == [90, 90]


def test_samples_say_how_many_are_drawn():
    mixture = Mixture([source("a", 90, samples=1), source("b", 400)])
    assert mixture.quotas.tolist() == [90, 400]
    counted = [
        PlannedSource("a", np.ones(90, dtype=np.int32), samples=200),
        PlannedSource("b", np.ones(400, dtype=np.int32), samples=50),
    ]
    assert Mixture(counted).quotas.tolist() == [200, 50]


def test_samples_of_shared_pictures_count_as_samples():
    sources = [
        PlannedSource("a", np.full(100, 6, dtype=np.int32), samples=600),
        PlannedSource("b", np.ones(600, dtype=np.int32), samples=600),
    ]
    assert Mixture(sources, questions=6).quotas.tolist() == [100, 600]


def test_a_repeat_limit_holds_a_source_and_the_others_fill_up():
    sources = [
        source("small", 100, weight=1.0, repeat_limit=2),
        source("b", 5000, weight=1.0),
        source("c", 5000, weight=2.0),
    ]
    mixture = Mixture(sources, stop=8000)
    assert mixture.quotas.tolist() == [200, 2600, 5200]
    assert mixture.held.tolist() == [True, False, False]
    assert mixture.repeats()[0] == 2


def test_where_every_source_is_held_the_pass_is_shorter():
    sources = [source("a", 100, repeat_limit=1), source("b", 100, repeat_limit=2)]
    assert Mixture(sources, stop=1000).quotas.tolist() == [100, 200]


def test_a_rare_source_is_drawn_at_its_share_too():
    mixture = Mixture(
        [source("a", 50_000, weight=19_999.0), source("b", 7, weight=1.0)], stop=60_000
    )
    plan = mixture.plan(0, mixture.rows)
    assert (plan.source == 1).sum() == 3
    for third in range(3):
        part = plan.source[third * 20_000 : (third + 1) * 20_000]
        assert (part == 1).sum() == 1


@pytest.mark.parametrize(
    ("sources", "options", "said"),
    [
        ([], {}, "empty; name at least one"),
        ([("a", {}), ("a", {})], {}, "two are named 'a'"),
        ([("a", {"weight": 1.0}), ("b", {})], {}, "weight is given for a but not for b"),
        ([("a", {"weight": 1.0, "samples": 5})], {}, "weight and samples are both given"),
        ([("a", {"weight": -1.0})], {}, "weight=-1.0: must be"),
        ([("a", {"weight": float("nan")})], {}, "weight=nan: must be"),
        ([("a", {"repeat_limit": 0})], {}, "repeat_limit=0: must be"),
        ([("a", {})], {"temperature": 0}, "temperature=0"),
        ([("a", {})], {"stop": 0}, "length=0"),
        ([("a", {})], {"stop": "never"}, "length='never'"),
        ([("a", {"samples": 5})], {"stop": 9}, "the sum of the sources' samples"),
        ([("a", {"samples": 5})], {"temperature": 2.0}, "temperature and cap"),
        ([("a", {"weight": 0.0})], {}, "nothing to draw"),
    ],
)
def test_an_impossible_request_is_refused_by_key_and_value(sources, options, said):
    built = [PlannedSource(name, np.ones(3, dtype=np.int32), **keys) for name, keys in sources]
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        Mixture(built, **options)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63))
def test_a_permutation_is_one(size, key):
    assert sorted(permuted(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_put_every_place_everywhere_equally_often():
    size, draws = 11, 4000
    first = np.array([permuted(np.arange(size), size, key_of(k))[:2] for k in range(draws)])
    for place in range(2):
        counts = np.bincount(first[:, place], minlength=size)
        # Six standard deviations of a binomial count.
        assert np.abs(counts - draws / size).max() < 6 * np.sqrt(draws / size)


def test_uniform_numbers_are_uniform():
    numbers = uniform(np.arange(100_000, dtype=np.uint64), key_of("test"))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts = np.bincount((numbers * 20).astype(int), minlength=20)
    assert np.abs(counts - 5000).max() < 6 * np.sqrt(5000)


def test_the_order_is_pinned_so_that_no_version_changes_it_unnoticed():
    """Whoever resumes a run with a newer version relies on it."""
    mixture = Mixture([source("a", 10), source("b", 5)], seed=3)
    plan = mixture.plan(0, 15)
    found = [f"{'ab'[s]}{g}" for s, g in zip(plan.source, plan.group, strict=True)]
    assert found == PINNED


def test_the_order_is_the_same_in_another_process():
    code = (
        "import numpy as np\n"
        "from llava_mole.data.mixture import Mixture, PlannedSource\n"
        "m = Mixture([PlannedSource('a', np.ones(10, dtype=np.int32)),"
        " PlannedSource('b', np.ones(5, dtype=np.int32))], seed=3)\n"
        "p = m.plan(0, 15)\n"
        "print([f\"{'ab'[s]}{g}\" for s, g in zip(p.source, p.group)])\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert out.stdout.strip() == str(PINNED)


PINNED = ["a1", "a0", "b0", "b4", "a7", "a5", "a4", "a8", "b3", "b1", "a6", "a2", "a3", "a9", "b2"]
