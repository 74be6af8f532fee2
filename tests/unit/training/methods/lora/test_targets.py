# ruff: noqa: F811  # a test's arguments are the fixtures imported here
"""Which layers of a real tiny UNet the targets mean, and their names in files."""

import pytest

from engine.core import patterns
from engine.core.errors import TaskError
from engine.models.families.sd.spec import SPEC
from engine.training.methods.lora import targets
from engine.training.methods.lora.targets import find_targets
from tests.unit.training.methods.lora.test_adapter import ATTENTION, pipeline, unet  # noqa: F401  # fixtures among them


class TestTargets:
    def test_null_is_the_four_attention_projections(self, unet):
        found = find_targets(unet, SPEC.lora_targets)
        attentions = [name for name, _ in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
        assert len(found) == 4 * len(attentions) > 0
        assert found.keys() == find_targets(unet, ATTENTION).keys()

    def test_a_list_matches_ends_and_whole_names(self, unet):
        found = find_targets(unet, ("conv_in", "attn1.to_q"))
        assert "conv_in" in found
        assert all(name == "conv_in" or name.endswith(".attn1.to_q") for name in found)

    def test_a_string_matches_the_whole_name(self, unet):
        found = find_targets(unet, r"mid_block\..*to_[kv]")
        assert len(found) == 4 and all(name.startswith("mid_block.") for name in found)
        with pytest.raises(TaskError):
            find_targets(unet, "to_k")

    @pytest.mark.parametrize("targets", [("to_kk",), "all-linear", (), ""])
    def test_nothing_matched_lists_what_there_is(self, unet, targets):
        with pytest.raises(
            TaskError, match=r"matches no layer; the layers are conv, conv1,.* to_k, to_out\.0, to_q"
        ) as caught:
            find_targets(unet, targets)
        assert caught.value.code == 2
        assert "\n" not in str(caught.value)

    def test_a_container_is_refused_with_what_is_in_it(self, unet):
        with pytest.raises(TaskError, match=r"attn1\.to_out is of type ModuleList.*use those in it: "):
            find_targets(unet, ("to_out",))
        with pytest.raises(TaskError, match=r"attn1 is of type Attention.*: to_k, to_out\.0, to_q, to_v$"):
            find_targets(unet, ("attn1",))

    def test_a_norm_is_refused(self, unet):
        with pytest.raises(
            TaskError, match=r"norm1 is of type LayerNorm, but only Linear and Conv2d layers can be adapted$"
        ):
            find_targets(unet, r".*transformer_blocks\.0\.norm1")

    def test_a_malformed_expression_is_refused(self, unet):
        with pytest.raises(TaskError, match=r'"\(to_k" is not a regular expression: .*position 0'):
            find_targets(unet, "(to_k")

    def test_an_expression_that_would_outlast_the_machine_is_refused(self, monkeypatch):
        monkeypatch.setattr(patterns, "SECONDS", 0.1)
        with pytest.raises(TaskError, match=r"takes more than 0\.1 s to match"):
            targets.match_targets({"a" * 100: None}, "(a+)+b")
        assert targets.match_targets({"aab": None}, "(a+)+b") == ["aab"]
        slow = targets.is_target("(a+)+b")
        with pytest.raises(TaskError, match=r"takes more than 0\.1 s to match"):
            for _ in range(100_000):  # each of them fast enough
                assert not slow("a" * 12)

    def test_ends_are_whole_parts_of_names(self):
        kinds = dict.fromkeys(("x.to_q", "x.not_to_q", "to_q"))
        assert targets.match_targets(kinds, ("to_q", *(f"a{index}" for index in range(100_000)))) == ["to_q", "x.to_q"]

    def test_an_end_that_matches_nothing_beside_others_is_said(self, unet, caplog):
        assert find_targets(unet, ("to_k", "q_proj"))
        assert [record.getMessage() for record in caplog.records] == [
            "lora.target_modules: 'q_proj' matches no layer of this model"
        ]
