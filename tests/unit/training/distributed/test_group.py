"""Processes that share a step out have the bits of one; here they are threads that meet at a barrier."""

import datetime
import threading
import time

import pytest
import torch

from engine.core.errors import DeviceError, Interrupted, PeerError, PeerInterrupted, TaskError, TemporaryError
from engine.results.state import weights_digest
from engine.training.distributed import group as group_module
from engine.training.distributed.peers import Ending, ending_of
from engine.training.distributed.processes import Processes
from engine.training.encoding import step_window
from tests.support.encoding import BATCH, STEPS, Setup, frozen, good, with_unreadable
from tests.support.states import dump_state, parse_state
from tests.support.threads import Threads, in_threads, through_gloo
from tests.unit.training.test_trainer import Run, make_task


def train_in(world_size, task, *, start=0, stop=8, state=None):
    def one(processes):
        run = Run(task, start=start, stop=stop, restore=parse_state(*state) if state else None, processes=processes)
        return run.train()

    return in_threads(world_size, one)


class TestGradients:
    @pytest.mark.parametrize("precision", ["no", "fp16"])
    @pytest.mark.parametrize("world_size", [2, 3, 6])
    def test_the_bits_of_one(self, world_size, precision):
        task = make_task(precision, gradient_accumulation_steps=6)
        expected = Run(task).train()
        for run in train_in(world_size, task):
            assert run.bytes() == expected.bytes()
            assert run.reports == expected.reports

    def test_a_chain_may_change_their_number(self):
        task, state = make_task(gradient_accumulation_steps=6), None
        for world_size, start, stop in ((6, 0, 3), (1, 3, 4), (2, 4, 8)):
            state = train_in(world_size, task, start=start, stop=stop, state=state)[0].bytes()
        assert state == Run(task).train().bytes()

    def test_the_order_of_the_ranks_is_part_of_the_bits(self):
        """Else the test above would prove nothing: floating-point sums depend on their order."""
        task = make_task(gradient_accumulation_steps=6)

        class Backwards(Threads):
            def gather(self, own):
                return super().gather(own).flip(0)

        def one(processes):
            run = Run(task, processes=Backwards(processes.place, processes.meeting, processes.table))
            return run.train().bytes()

        assert in_threads(6, one)[0] != Run(task).train().bytes()


@pytest.mark.parametrize("images", [good(), with_unreadable()], ids=["good", "unreadable"])
@pytest.mark.parametrize("center_crop, window", [(False, 1024), (True, 1024), (False, 2 * BATCH)])
def test_each_encodes_its_own_visits_and_all_know_what_is_unreadable(
    images, center_crop, window, tmp_path, monkeypatch
):
    micro_batches = 4
    monkeypatch.setattr(step_window, "WINDOW_VISITS", window)  # of half a step at the least

    def one(processes, cache="shared"):
        setup = Setup(
            images, tmp_path / cache, center_crop=center_crop, micro_batches=micro_batches, processes=processes
        )
        return [list(setup.encoder.examples(step)) for step in range(STEPS)], setup.encoder.skipped, setup

    whole, skipped, alone = one(None, "alone")
    found = in_threads(2, one)
    for step, examples in enumerate(whole):
        for k in range(micro_batches):
            steps, _, _ = found[k % 2]
            round_ = k // 2
            own = steps[step][round_ * BATCH : (round_ + 1) * BATCH]
            assert frozen([own]) == frozen([examples[k * BATCH : (k + 1) * BATCH]])
    assert [sorted(one[1]) for one in found] == [sorted(skipped)] * 2
    if center_crop:  # every image is encoded by one of them, and found on the disk by the other
        encoded = [image for _, _, setup in found for image in setup.family.encoded_images]
        assert sorted(encoded) == sorted(alone.family.encoded_images)


def test_processes_that_disagree_end():
    """A machine whose memory or arithmetic is wrong."""
    in_threads(3, lambda processes: processes.require_same("the digest", "a", DeviceError))
    with pytest.raises(DeviceError, match="in all processes of the job, but is 'a' in process 0 and 'b' in process 2"):
        in_threads(3, lambda processes: processes.require_same("the digest", "aab"[processes.rank], DeviceError))


@pytest.mark.parametrize(
    "signums, saves, finishes, expected",
    [
        ((0, 15), (True, False), (False, True), (15, True, True)),
        ((0, 0), (False, False), (False, False), (0, False, False)),
    ],
)
def test_a_signal_of_one_and_a_save_of_another_are_everybodys(signums, saves, finishes, expected):
    agreed = {}

    def agree(group):
        agreed[group.rank] = group.agree(
            signum=signums[group.rank], save=saves[group.rank], finish=finishes[group.rank]
        )

    through_gloo(agree)
    assert agreed == {0: expected, 1: expected}


def test_after_a_step_no_process_waits_for_one_that_hangs_longer_than_for_a_gradient(monkeypatch):
    monkeypatch.setattr(group_module, "GATHER_TIME", datetime.timedelta(seconds=0.5))
    seconds, is_over = [], threading.Event()

    def agree(group):
        if group.rank == 1:
            is_over.wait(30)  # connected, alive, and stuck
            return
        start = time.monotonic()
        with pytest.raises(TemporaryError, match="lost"):
            group.agree(signum=0, save=False)
        seconds.append(time.monotonic() - start)
        is_over.set()

    through_gloo(agree)
    assert seconds and seconds[0] < 20


def test_the_first_goes_first():
    order = []
    in_threads(3, lambda processes: processes.first_then_others(lambda: order.append(processes.rank)))
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_one_process_alone_agrees_with_itself():
    alone = Processes()
    alone.require_same("anything", 1, DeviceError)
    assert alone.exchange({"a": 1}) == [{"a": 1}] and alone.broadcast(lambda: 3) == 3
    assert alone.first_then_others(lambda: "x") == "x" and alone.broadcast_into(memoryview(b"x"), len) == 1
    assert alone.agree(signum=15, save=False, finish=True) == (15, False, True)


@pytest.mark.parametrize(
    "error, expected",
    [
        (TaskError("bad"), PeerError(2, "task", "bad", origin=1)),
        (Interrupted(15, "stopped"), PeerInterrupted(15, "stopped")),
        (KeyError("x"), PeerError(70, "bug", "a bug in this program: KeyError: 'x'", origin=1)),
        (PeerError(3, "dataset", "gone", origin=2), PeerError(3, "dataset", "gone", origin=2)),
        (DeviceError("hot"), PeerError(9, "device", "hot", origin=1)),
    ],
)
def test_what_the_others_end_with(error, expected):
    found = ending_of(error, 1).error()
    assert (type(found), str(found), found.code) == (type(expected), str(expected), expected.code)
    assert getattr(found, "origin", None) == getattr(expected, "origin", None)
    assert not Ending(0, 75, "temporary", "x").is_interruption


def test_the_digest_is_over_names_and_bits():
    state = Run().trainer.state().trained
    digest = weights_digest(state)
    assert digest == weights_digest(dict(reversed(state.items())))
    (name, tensor), *_ = state.items()
    assert digest != weights_digest({**state, name: -tensor}) and digest != weights_digest({f"{name}x": tensor})
    assert dump_state(Run().trainer.state()) == dump_state(Run().trainer.state())


class TestWholeTensors:
    """Exchanges of whole models, through gloo."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("lengths", [[2, 3], [5, 0], [0, 0]])
    def test_each_gets_its_part_of_all(self, lengths, dtype):
        def deal(group):
            return group.deal((torch.arange(5.0) + 10 * group.rank).to(dtype)[: sum(lengths)], lengths)

        first, second = through_gloo(deal)
        whole = torch.stack([torch.arange(5.0), torch.arange(5.0) + 10]).to(dtype)[:, : sum(lengths)]
        assert torch.equal(first, whole[:, : lengths[0]]) and torch.equal(second, whole[:, lengths[0] :])

    @pytest.mark.parametrize("shape", [(2, 3), (), (0,)])
    @pytest.mark.parametrize("owner", [0, 1])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
    def test_the_first_gets_what_one_has(self, owner, shape, dtype):
        tensor = torch.full(shape, 7, dtype=dtype)

        def bring(group):
            brought = group.bring_to_first(tensor if group.rank == owner else None, owner, shape, dtype)
            group.exchange("done")  # none ends before the others are connected
            return brought

        found = through_gloo(bring, 3)
        assert torch.equal(found[0], tensor) and found[0].dtype == dtype and found[2].numel() == 0

    @pytest.mark.parametrize("exchange", ["gather", "deal", "bring_to_first"])
    def test_one_that_ends_in_the_middle_ends_the_others(self, exchange):
        """Its connections close, as a killed process's do; the reason is asked for."""
        own = torch.ones(1 << 20)
        orders = {
            "gather": lambda group: group.gather(own),
            "deal": lambda group: group.deal(own, [1 << 19, 1 << 19]),
            "bring_to_first": lambda group: group.bring_to_first(own if group.rank else None, 1, own.shape, own.dtype),
        }

        def run(group):
            orders[exchange](group)
            if group.rank == 1:
                return True
            with pytest.raises(TemporaryError, match="lost their connection"):
                orders[exchange](group)
            return True

        assert through_gloo(run) == [True, True]
