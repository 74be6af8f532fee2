# README.md's "Using the LoRA", with the demo's base and LoRA. Run it in the folder that has `assets` and `out`.
import torch
from diffusers import StableDiffusionPipeline

base, lora, prompt = "assets/base-emoji", "out/demo/001/checkpoint", "an owl emoji"
device = "cuda" if torch.cuda.is_available() else "cpu"

pipe = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32).to(device)
pipe.load_lora_weights(lora)
generator = torch.Generator("cpu").manual_seed(1)
pipe(prompt, num_inference_steps=30, generator=generator).images[0].save("image.png")
