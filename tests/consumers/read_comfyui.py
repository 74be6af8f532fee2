"""What ComfyUI makes of a LoRA file: a program, so that its modules never meet ours.

    python read_comfyui.py CHECKOUT LORA NAMES

CHECKOUT is a checkout of ComfyUI; NAMES is JSON: `keys`, what ComfyUI's loaded model calls its weights, and
`unet_config`, the UNet's sizes in ComfyUI's words. Prints JSON: the model's key -> the number in the up matrix that is
applied to it, and the file's keys that nothing wanted.

Only the key mapping and the loading of LoRA files run. ComfyUI's models and devices are left out, and so is what is not
installed here: empty modules stand in for them.
"""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from safetensors.torch import load_file


class Hollow(ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Unwanted(logging.Handler):
    def __init__(self):
        super().__init__()
        self.keys = []

    def emit(self, record):
        text = record.getMessage()
        if "lora key not loaded" in text:
            self.keys.append(text.rpartition(" ")[2])


def main(checkout, lora, names):
    sys.argv = sys.argv[:1]
    sys.path.insert(0, checkout)
    for name in ("comfy.model_base", "comfy.model_management", "einops"):
        sys.modules[name] = Hollow(name)
    import comfy

    comfy.model_base, comfy.model_management = sys.modules["comfy.model_base"], sys.modules["comfy.model_management"]
    import comfy.lora

    names = json.loads(Path(names).read_text())
    model = SimpleNamespace(
        state_dict=lambda: dict.fromkeys(names["keys"]),
        model_config=SimpleNamespace(unet_config=names["unet_config"]),
    )
    wanted = comfy.lora.model_lora_keys_unet(model, {}) | comfy.lora.model_lora_keys_clip(model, {})
    unwanted = Unwanted()
    logging.getLogger().addHandler(unwanted)
    patches = comfy.lora.load_lora(load_file(lora), wanted)
    applied = {}
    for key, patch in patches.items():
        up, down, alpha = patch.weights[:3]
        assert alpha == down.shape[0]
        applied[key] = up.flatten()[0].item()
    print(json.dumps({"applied": applied, "unwanted": sorted(unwanted.keys)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
