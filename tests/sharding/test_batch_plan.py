from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from ropewalk.sharding.batch_plan import BatchPlan

sizes = st.integers(1, 70)


@given(global_batch=sizes, micro_batch=st.integers(1, 9), data_size=st.integers(1, 9), position=st.integers(0, 10**12))
def test_every_sample_goes_to_one_rank_and_all_compute_as_many_micro_batches(
    global_batch: int, micro_batch: int, data_size: int, position: int
) -> None:
    plans = [
        BatchPlan(global_batch=global_batch, micro_batch=micro_batch, data_size=data_size, data_rank=rank)
        for rank in range(data_size)
    ]
    dealt = [list(plan.samples(position)) for plan in plans]
    assert list(chain(*dealt)) == list(range(position, position + global_batch))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    for plan, samples in zip(plans, dealt, strict=True):
        cuts = plan.micro_batches(len(samples))
        assert len(cuts) == plans[0].num_micro_batches
        assert list(chain(*(samples[rows] for rows in cuts))) == samples
        assert all(len(samples[rows]) <= micro_batch for rows in cuts)


def test_steps_follow_each_other() -> None:
    plan = BatchPlan(global_batch=8, micro_batch=4, data_size=3, data_rank=1)
    assert list(plan.steps(100, 2)) == [plan.samples(100), plan.samples(108)]


def test_three_ranks_share_32_sequences_evenly() -> None:
    plans = [BatchPlan(global_batch=32, micro_batch=4, data_size=3, data_rank=rank) for rank in range(3)]
    assert [len(plan.samples(0)) for plan in plans] == [10, 11, 11]
    assert {plan.num_micro_batches for plan in plans} == {3}
