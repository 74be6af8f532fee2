"""Run a whole job. This module reads as a table of contents: it only connects the parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine.core import rng
from engine.core.console import say
from engine.core.errors import NonFiniteError, PeerError, PeerInterrupted
from engine.core.files.file_hashes import FileDigests
from engine.job import encoding, memory
from engine.job.advice import disk_space
from engine.job.advice.clips import Survey
from engine.job.advice.describe import describe
from engine.job.advice.precheck import check_memory
from engine.job.context import JobContext, RunContext
from engine.job.encode_ahead import encode_ahead, loading_again
from engine.job.hub.push import push_result
from engine.job.job import Job
from engine.job.memory.device_errors import available_bytes, device_errors
from engine.job.opening import claim_output, introduce_task, prune_cache
from engine.job.prepare import require_same_job
from engine.job.progress_saver import ProgressSaver
from engine.job.results.due_results import DueResults
from engine.job.results.finish_now import FinishNow
from engine.job.results.publish import draw_and_publish
from engine.job.results.watch import Watch
from engine.job.start import Training, find_beginning, load_family, start_training
from engine.models.components.block_inputs import BlockInputs
from engine.models.loading.modules import require_finite_weights
from engine.results import provenance
from engine.results.history import StepReport
from engine.results.progress_log import ProgressLog
from engine.results.trackers.registry import tracked
from engine.results.trackers.tracker import TrackedTraining
from engine.task.push import describe as describe_push
from engine.training.device import open_device
from engine.training.encoding.encoder_placement import EncoderPlacement
from engine.training.gradient_checkpointing import recompute_activations
from engine.training.trainer import train


def run(opened: JobContext, *, digests: FileDigests, log: ProgressLog) -> None:
    """Train the slice of a job that is prepared, and publish its result.

    All processes of a job call this. The output folder is locked by the first one; the others use neither that nor
    `log`. `digests` has hashed the base model's files.

    Raises:
        JobError: something went wrong; the error's class says what.
        Interrupted: by a signal, after the exact progress was saved.
    """
    settings, job, task, processes = opened.settings, opened.job, opened.job.task, opened.processes
    output, outcome, stop = opened.output, opened.outcome, opened.stop
    rng.check_known_answers()
    device = open_device(settings, task.mixed_precision)
    processes.open_device(device)
    outcome.device = provenance.describe_device(device)
    introduce_task(outcome)
    require_same_job(job, device, processes)
    prune_cache(settings, processes)
    context = RunContext(
        settings=settings, job=job, device=device, processes=processes, output=output, outcome=outcome, stop=stop
    )
    processes.broadcast(lambda: claim_output(context, log))
    processes.broadcast(lambda: disk_space.require(job, output.root))
    main = memory.available_bytes()
    machine = memory.Machine(
        device=device.type,
        available=available_bytes(device, processes.world_size),
        main_available=None if main is None else main // settings.place.num_here,
        num_processes=processes.world_size,
    )
    if survey := Survey.of(job):
        outcome.clips = survey.counts()
    for line in describe(job) + memory.describe(job.base, task, machine) + describe_push(settings.push):
        say(line)
    check_memory(job, replace(machine, num_processes=settings.place.num_here))
    decision = memory.decide(job.base, task, machine)
    with device_errors(job, device, machine):
        with outcome.clock.phase("load"):
            blocks = decision.offload == memory.Offload.BLOCKS
            family = load_family(job, device, digests.require_unchanged, offload=blocks)
            beginning = find_beginning(context)
        # Free memory differs from process to process, and encoding ahead is a collective call.
        if apart := any(processes.exchange(decision.apart)):
            encode_ahead(context, family, beginning)
        with outcome.clock.phase("load"):
            training = start_training(context, family, beginning)
            del beginning  # its tensors
            digests.require_unchanged()
            if decision.recompute:
                recompute_activations(training.family.denoiser, BlockInputs(device) if decision.offload else None)
        if processes.broadcast(lambda: FinishNow(context).has_ended(training)):
            context = replace(context, job=job.ended_at(training.trainer.step))
        with Watch.opened(context, training) as watch:
            stays = not apart and all(processes.exchange(memory.keeps_encoders(job.base, task, machine)))
            placement = EncoderPlacement(family, device, loading_again=loading_again() if apart else None, stays=stays)
            job = _train(context, training, placement, log, watch)
            context = replace(context, job=job)
            prune_cache(settings, processes)
            training.trainer.end()
            processes.ignore_signals_unless_first()
            with training.trainer.averaged(is_last=True):
                processes.broadcast(lambda: draw_and_publish(context, training, watch))
    processes.broadcast(lambda: push_result(context, is_new=True))


def _train(context: RunContext, training: Training, placement: EncoderPlacement, log: ProgressLog, watch: Watch) -> Job:
    """Train to the task's last step, and make all results that are due in between.

    Returns:
        The job that was trained: `context.job`, or a shorter one if the task was told to finish.
    """
    job, outcome, stop, trainer = context.job, context.outcome, context.stop, training.trainer
    device, processes, family = context.device, context.processes, training.family
    saver = ProgressSaver(context, training)
    cache = encoding.encoding_cache(job, context.settings, device)

    def check_stop() -> None:
        watch.renew_if_due()
        stop.check(saver.save_alone)

    places: dict[str, Any] = {"processes": processes, "check_stop": check_stop}
    encoder = encoding.visit_encoder(job, family, cache, placement, **places)
    loss = encoding.held_out_loss(job, family, cache, placement, device=device, **places)
    held_out = encoding.held_out_curve(
        job, loss, rows=training.held_out_losses, outcome=outcome, averaged=trainer.averaged
    )
    outcome.newly_skipped = lambda: encoder.skipped + held_out.skipped
    tracked_training = TrackedTraining(
        step_range=job.step_range, step=trainer.step, clock=outcome.clock, log=log, noun=job.medium.names.noun
    )
    with stop.deferred(), tracked(tracked_training, is_first=processes.is_first) as trackers:
        due_results = DueResults(context, training, saver, trackers, watch, placement=placement)

        def make_due_results() -> None:
            row = held_out.measure_if_due(trainer.step)
            if row is not None:
                trackers.event("evaluation", heldout_loss=row.loss)
                watch.services.held_out_loss(trainer.step, row.loss)
            due_results.make()

        def after_step(report: StepReport) -> bool:
            outcome.global_step = report.step
            outcome.steps_trained += 1
            trackers.step(report)
            watch.step(report)
            if ends := saver.after_step(report):
                held_out.end_at(report.step)
                due_results.end_at(report.step)
            if saver.saves_together and held_out.is_due(report.step):
                saver.save()  # a signal while they measure ends them at different points, where none can
            make_due_results()
            watch.renew_if_due()
            return ends

        try:
            make_due_results()
            train(trainer, job.step_range, encoder.examples, after_step, outcome.clock, at_hand=encoder.at_hand)
            saver.finish()
        except NonFiniteError:
            # Mostly found before the update, so this is the last good state; otherwise saving raises as well.
            saver.save()
            require_finite_weights(family)
            raise
        except (PeerError, PeerInterrupted):
            saver.save_alone()
            raise
    return job.ended_at(trainer.step)
