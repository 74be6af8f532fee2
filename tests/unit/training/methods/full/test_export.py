"""Published folders of whole components."""

import pytest
import torch
from safetensors.torch import load, load_file

from engine.training.methods.full.export import exported
from engine.training.methods.full.method import FullTraining
from tests.unit.models.families.test_every_family import BUILDERS
from tests.unit.models.families.test_every_family import load as load_family


@pytest.mark.parametrize("name", BUILDERS)
def test_the_denoisers_folder_has_all_that_the_base_models_has(name, tmp_path):
    """Tables of positions, too, which are no parameters."""
    folder = BUILDERS[name](tmp_path / "base")
    family = load_family(folder)
    spec, component = family.spec, family.spec.denoiser
    (path,) = (folder / component).glob("*.safetensors")
    expected = load_file(path)
    for dtype in (torch.float32, torch.bfloat16):
        FullTraining(family, {component: family.denoiser}, dtype)
        files = exported(spec, component, family.denoiser)
        found = load(b"".join(files[f"{component}/{path.name}"]()))
        assert found.keys() == expected.keys() and {tensor.dtype for tensor in found.values()} == {dtype}
        assert all(torch.equal(found[name], expected[name].to(dtype)) for name in expected)
