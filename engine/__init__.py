"""LoRA fine-tuning of Stable Diffusion as one exact, resumable job."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # `python -m engine.…` is about to import that module: first make its process safe
    from engine.core.process.startup import prepare_process

    prepare_process()
