"""Gradients of whole models, summed tensor by tensor: the bits of the flat sum, and of one process in several."""

import contextlib
import math

import pytest
import torch

from engine.core.errors import NonFiniteError
from engine.training.distributed.processes import Processes
from engine.training.gradients import shares
from engine.training.gradients.by_tensor import TensorGradients
from engine.training.gradients.flat import FlatGradients
from tests.support.fake_memory import LiveBytes
from tests.support.threads import in_threads, through_gloo
from tests.support.whole_models import UNUSED, Run16, WholeRun, restored, same
from tests.unit.training.test_trainer import make_task


def task(precision="no", accumulation=4, **args):
    return make_task(precision, gradient_accumulation_steps=accumulation, max_grad_norm=0.3, **args)


class Network(torch.nn.Module):
    """Two layers, one of which is used twice, and one that is not used."""

    def __init__(self, dtype):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.wide, self.square, self.unused = (
            torch.nn.Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in ((40, 30), (40, 40), (5,))
        )

    def forward(self, x):
        hidden = torch.tanh(x.to(self.wide.dtype) @ self.wide.T @ self.square.T)
        return (hidden @ self.square).float().square().mean()


def summed(kind, network, *, micro_batches=3, divisor=3.0):
    """The divided gradients, the losses and the norm of a step."""
    parameters = dict(sorted(network.named_parameters()))
    gradients = kind(parameters, Processes())
    draw = torch.Generator().manual_seed(1)
    with gradients.step(list(parameters.values()), micro_batches) as total:
        for _ in range(micro_batches):
            loss = network(torch.randn(8, 30, generator=draw))
            total.add(loss, loss * 1024.0)
    found = total.divided(divisor)
    return found, total.losses, gradients.norm(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batches, divisor", [(1, 1.0), (3, 3.0)])
def test_the_bits_of_the_flat_sum(dtype, micro_batches, divisor):
    options = {"micro_batches": micro_batches, "divisor": divisor}
    flat, losses, norm = summed(FlatGradients, Network(dtype), **options)
    network = Network(dtype)
    ours, own_losses, own_norm = summed(TensorGradients, network, **options)
    assert ours.keys() == {"wide", "square"} and not flat["unused"].any()
    assert all(torch.equal(tensor, flat[name]) and tensor.dtype == torch.float32 for name, tensor in ours.items())
    assert torch.equal(losses, own_losses)
    torch.testing.assert_close(own_norm, norm)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_error_leaves_neither_hooks_nor_gradients():
    network = Network(torch.float32)
    parameters = dict(sorted(network.named_parameters()))
    gradients = TensorGradients(parameters, Processes())
    with pytest.raises(RuntimeError, match="stop"), gradients.step(list(parameters.values()), 1):
        network(torch.ones(2, 30)).backward()
        raise RuntimeError("stop")
    network(torch.ones(2, 30)).backward()
    assert network.wide.grad is not None, "no hook takes it away"


def grown(kind):
    """By how many bytes the memory grows at most in the second backward pass through 20 layers, and a layer's bytes."""
    size, count = 100, 20
    layers = torch.nn.Sequential(*(torch.nn.Linear(size, size, bias=False) for _ in range(count)))
    parameters = dict(layers.named_parameters())
    gradients = kind(parameters, Processes())
    with LiveBytes(list(parameters.values())) as memory, gradients.step(list(parameters.values()), 2) as total:
        for _ in range(2):
            loss = layers(torch.ones(2, size)).square().mean()
            memory.peak = before = memory.now
            total.add(loss, loss)
    return memory.peak - before, size * size * 4


def test_there_is_never_a_second_full_gradient():
    """Each is added and freed while the backward pass goes on."""
    found, layer = grown(TensorGradients)
    assert 0.9 * layer < found < 3 * layer
    found, layer = grown(FlatGradients)
    assert found > 20 * layer, "the test would notice"


class TestUnused:
    def test_it_is_not_touched_by_the_decay_of_weights(self):
        run = WholeRun(task())
        before = {name: value.clone() for name, value in run.trainable.state().items()}
        run.train()
        after = run.trainable.state()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {name for name in before if ".unused." not in name} and UNUSED in before
        assert not run.saved()[0][f"exp_avg.{UNUSED}"].any()


def train_in(world_size, run_type, own_task, *, start=0, stop=8, saved=None, connect=in_threads):
    """The state that the first process saves, each process's reports and its values."""

    def one(processes):
        state = restored(saved) if saved else None
        run = run_type(own_task, start=start, stop=stop, restore=state, processes=processes).train()
        return run.saved(), run.reports, run.trainable.state(), run.trainer

    return connect(one, world_size) if connect is through_gloo else connect(world_size, one)


class TestProcesses:
    @pytest.mark.parametrize(
        "world_size, run_type, precision",
        [(2, WholeRun, "no"), (2, Run16, "no"), (3, Run16, "no"), (4, WholeRun, "fp16"), (12, WholeRun, "no")],
    )
    def test_the_bits_of_one(self, world_size, run_type, precision, monkeypatch):
        """Twelve processes are more than there are tensors. A bucket holds less than the largest tensor."""
        monkeypatch.setattr(shares.Shares.__init__, "__defaults__", (50,))
        own = task(precision, accumulation=12, ema_decay=0.9)
        alone = run_type(own).train()
        found = train_in(world_size, run_type, own)
        assert same(found[0][0], alone.saved())
        for _, reports, values, _ in found:
            assert reports == alone.reports
            assert all(torch.equal(values[name], value) for name, value in alone.trainable.state().items())
        owned = [set(trainer._optimizer.state().slots["exp_avg"]) for *_, trainer in found]
        assert sum(map(len, owned)) == len(set().union(*owned)) == len(alone.trainable.parameters)

    def test_through_gloo(self):
        own = task(ema_decay=0.9)
        assert same(train_in(2, Run16, own, connect=through_gloo)[0][0], Run16(own).train().saved())

    def test_a_chain_may_change_their_number(self):
        own, saved = task(accumulation=6, ema_decay=0.99), None
        for world_size, start, stop in ((3, 0, 3), (1, 3, 4), (2, 4, 8)):
            saved = train_in(world_size, WholeRun, own, start=start, stop=stop, saved=saved)[0][0]
        assert same(saved, WholeRun(own).train().saved())

    def test_the_order_of_the_ranks_is_part_of_the_bits(self):
        """Else the tests above would prove nothing: floating-point sums depend on their order."""

        def backwards(processes):
            deal = processes.deal
            processes.deal = lambda own, lengths: deal(own, lengths).flip(0)
            return WholeRun(own, processes=processes).train().saved()

        own = task(accumulation=6)
        assert not same(in_threads(6, backwards)[0], WholeRun(own).train().saved())

    @pytest.mark.parametrize("world_size", [1, 2])
    def test_a_tensor_that_only_some_micro_batches_use(self, world_size):
        """Its sum is that of the micro-batches that do, and its bias correction counts every update."""

        def one(processes):
            run = WholeRun(own, processes=processes)
            loss, seen = run.family.loss, []

            def sometimes(batch, options):
                number = len(seen) * processes.world_size + processes.rank
                seen.append(number)
                extra = run.family.denoiser["unused"].weight.sum() * 1e-3 if number in (5, 6, 14, 15, 22) else 0.0
                return loss(batch, options) + extra

            run.family.loss = sometimes
            return run.train().saved()

        own = task()
        whole = one(Processes())
        assert whole[0][f"exp_avg.{UNUSED}"].any()
        assert same(in_threads(world_size, one)[0], whole)

    def test_an_overflow_in_one_is_everybodys(self):
        """The fp16 scaler skips the step where the sum is not finite, in all processes, and the average goes on."""

        def one(processes):
            run = WholeRun(own, processes=processes)
            if processes.rank == processes.world_size - 1:
                run.trainable.layers["unet.first.weight"].register_hook(lambda g: g * (math.inf if once() else 1.0))
            calls = iter([True])
            once = lambda: next(calls, False)  # noqa: E731
            run.train(stop=4)
            return run.saved(), run.reports

        own = task("fp16", accumulation=2, ema_decay=0.9)
        found = in_threads(2, one)
        assert found[0][1] == found[1][1] and found[0][1][0].grad_norm is None
        assert found[0][0][1]["optimizer_step"] == 3 and found[0][0][1]["global_step"] == 4

    def test_a_loss_that_is_not_finite_ends_all_of_them_before_the_update(self):
        def one(processes):
            run = WholeRun(task(), processes=processes).train(stop=2)
            before = run.saved()
            run.family.loss_factors = iter([math.nan] if processes.rank else [])
            with contextlib.suppress(NonFiniteError):
                run.step()
                return False
            return same(run.saved(), before)

        assert in_threads(2, one) == [True, True]
