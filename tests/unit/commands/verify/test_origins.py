"""Where a result was made, and whom a difference accuses."""

from types import SimpleNamespace

import pytest

from engine.commands.verify import origins
from engine.results.history import StepReport

HERE, ELSEWHERE = ({"device": {"instructions": name}, "versions": {"torch": "2"}} for name in ("AVX2", "DEFAULT"))


def ranges(*places):
    """As `world.origin_of_result` writes them: (first step, last step, where)."""
    *_, (_, end, last) = places
    found = [{"from_step": start, "to_step": stop, **where} for start, stop, where in places]
    manifest = {**last, **({"origins": found} if len(places) > 1 else {})}
    return SimpleNamespace(manifest=manifest, global_step=end)


class TestDescribe:
    """Where a result was made, and whether a difference means that somebody is wrong."""

    def told(self, result, **options):
        values = {"same_until": 40} | options
        return "\n".join(origins.describe(result, ranges((0, 40, HERE)), start=0, **values))

    def test_one_place_as_here(self):
        assert "so one of the two is wrong" in self.told(ranges((0, 40, HERE)), same_until=3)

    def test_one_place_elsewhere(self):
        said = self.told(ranges((0, 40, ELSEWHERE)), same_until=0)
        assert "wrong" not in said and "device.instructions is 'DEFAULT' in the result, 'AVX2' in the re-run" in said

    @pytest.mark.parametrize(
        "places, same_until, accused",
        [
            (((0, 21, ELSEWHERE), (21, 40, HERE)), 0, False),
            (((0, 21, HERE), (21, 40, ELSEWHERE)), 21, False),
            (((0, 21, HERE), (21, 40, ELSEWHERE)), 25, False),
            (((0, 21, HERE), (21, 40, ELSEWHERE)), 20, True),  # where both say that they were made in one world
            (((0, 40, HERE), (40, 40, ELSEWHERE)), 40, False),  # the images were drawn elsewhere
            (((0, 40, HERE), (40, 40, ELSEWHERE)), 39, True),
        ],
    )
    def test_several_places(self, places, same_until, accused):
        said = self.told(ranges(*places), same_until=same_until)
        assert ("so one of the two is wrong" in said) is accused
        for start, stop, where in places:
            if where is ELSEWHERE:
                what = f"steps {start + 1} to {stop}" if stop > start else "the images"
                assert f"another environment: {what}: device.instructions is 'DEFAULT' in the result" in said
        assert ("entrypoint.py compare" in said) is not accused

    def test_an_identical_one_is_told_where_it_was_made_and_not_accused(self):
        said = self.told(ranges((0, 21, ELSEWHERE), (21, 40, HERE)), same_until=None)
        assert "another environment: steps 1 to 21" in said and "wrong" not in said and "compare" not in said

    @pytest.mark.parametrize("lie", [None, [], "x", [{}], [{"from_step": "0", "to_step": None}], [5]])
    def test_a_strangers_ranges_that_are_none_count_as_one_place(self, lie):
        result = ranges((0, 40, HERE))
        result.manifest["origins"] = lie
        assert "so one of the two is wrong" in self.told(result, same_until=3)


def test_up_to_which_step_both_tell_the_same():
    rows = [StepReport(step, 1.0, 1e-3, 0.5) for step in (1, 2, 3)]
    other = [rows[0], StepReport(2, 1.5, 1e-3, 0.5), rows[2]]
    assert origins.same_until(rows, rows, 3) == 3 and origins.same_until(other, rows, 3) == 1
    assert origins.same_until(rows[:2], rows, 3) == 2 and origins.same_until([], [], 7) == 7
