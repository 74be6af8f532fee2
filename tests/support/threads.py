"""Processes of a job as threads of a test: they meet at a barrier, or are connected by gloo as real processes are."""

import datetime
import threading

import torch
import torch.distributed as dist

from engine.core.process.environment import Place
from engine.core.process.signals import Stop
from engine.training.distributed.group import Group
from engine.training.distributed.processes import Processes


class Threads(Processes):
    """One of several threads, as `Group` is one of several processes."""

    def __init__(self, place, meeting, table):
        super().__init__(place)
        self.meeting, self.table = meeting, table

    def exchange(self, own):
        self.table[self.rank] = own
        self.meeting.wait(60)
        found = list(self.table)
        self.meeting.wait(60)
        return found

    def gather(self, own):
        return torch.stack(self.exchange(own))

    def deal(self, own, lengths):
        return torch.stack([parts[self.rank] for parts in self.exchange(torch.split(own, lengths))])

    def bring_to_first(self, own, owner, shape, dtype):
        return self.exchange(own)[owner]

    require_same = Group.require_same
    first_then_others = Group.first_then_others


class Silent:
    """A watch that hears of no process's end."""

    def news(self, *, seconds):
        return None


def in_threads(world_size, action):
    """What `action(processes)` gives in each of the threads."""
    meeting, table = threading.Barrier(world_size), [None] * world_size
    return _run(world_size, lambda rank: action(Threads(Place(rank, world_size, rank), meeting, table)), meeting.abort)


def through_gloo(action, world_size=2):
    """What `action(group)` gives in each of the threads, which are connected as processes are."""
    store = dist.HashStore()

    def run(rank):
        gloo = dist.ProcessGroupGloo(store, rank, world_size, datetime.timedelta(seconds=60))
        control = dist.ProcessGroup(store, rank, world_size)
        control._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, gloo)
        control._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
        dist.distributed_c10d._world.pg_group_ranks[control] = {k: k for k in range(world_size)}
        group = Group(Place(rank, world_size, rank), Stop(), Silent(), control)
        group._gradients = control
        try:
            return action(group)
        finally:
            del dist.distributed_c10d._world.pg_group_ranks[control]

    return _run(world_size, run, lambda: None)


def _run(world_size, action, abort):
    results = [None] * world_size

    def run(rank):
        try:
            results[rank] = action(rank)
        except BaseException as error:
            results[rank] = error
            abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors = [result for result in results if isinstance(result, BaseException)]
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]  # not a consequence
    for error in own or errors:
        raise error
    return results
