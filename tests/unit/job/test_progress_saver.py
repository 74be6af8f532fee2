"""What of a step is in the history when another process of the job is found to have ended."""

from types import SimpleNamespace

import pytest
import torch

from engine.core.errors import PeerError
from engine.job.progress_saver import ProgressSaver
from engine.results.history import DIGEST_STEPS, StepReport
from engine.results.state import weights_digest

WEIGHTS = {"a": torch.ones(2)}


def lost(*args, **kwargs):
    raise PeerError(75, "temporary", "process 1 of the job was killed", origin=1, was_killed=True)


def saver(step, **processes):
    training = SimpleNamespace(
        history=[], trainer=SimpleNamespace(step=step), trainable=SimpleNamespace(state=lambda: WEIGHTS)
    )
    context = SimpleNamespace(
        settings=SimpleNamespace(save_seconds=1000.0),
        stop=SimpleNamespace(signum=0, is_finish_requested=False, check=lambda save, signum: None),
        output=SimpleNamespace(finish_step=lambda: None),
        processes=SimpleNamespace(is_first=True, world_size=2, **processes),
    )
    return ProgressSaver(context, training), training.history


@pytest.mark.parametrize(("step", "digest"), [(DIGEST_STEPS - 1, None), (DIGEST_STEPS, weights_digest(WEIGHTS))])
@pytest.mark.parametrize(
    "processes", [{"agree": lost}, {"agree": lambda **own: (15, False, False), "require_same": lost}]
)
def test_a_trained_step_is_recorded_before_the_processes_exchange_anything(step, digest, processes):
    """The weights already have the step: a progress saved now, without its record, would lose it for good."""
    own, history = saver(step, **processes)
    with pytest.raises(PeerError):
        own.after_step(StepReport(step, 0.5, 1e-4, 1.0))
    assert history == [StepReport(step, 0.5, 1e-4, 1.0, digest)]


@pytest.mark.parametrize(("signum", "calls"), [(0, ["save_alone"]), (15, ["save"])])
def test_where_another_process_has_ended_nothing_is_saved_together(monkeypatch, signum, calls):
    """Without an agreed signal the check acts only if one has ended, which does not take part."""
    own, _ = saver(1, agree=lambda **own: (signum, False, False), require_same=lambda *args: None)
    own._context.stop.check = lambda save, signum: save()
    found = []
    for name in ("save", "save_alone"):
        monkeypatch.setattr(own, name, lambda name=name: found.append(name))
    own.after_step(StepReport(1, 0.5, 1e-4, 1.0))
    assert found == calls
