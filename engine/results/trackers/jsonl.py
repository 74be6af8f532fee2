"""Log a training's steps and events to the job's `progress.jsonl`."""

from __future__ import annotations

from engine.results.trackers.tracker import TrackedTraining, Tracker


def follow_training(training: TrackedTraining) -> Tracker:
    """Let the process's log follow the training."""
    return training.log.follow(training.step_range, training.step)
