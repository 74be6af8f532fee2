"""The file formats of LoRAs: Diffusers', PEFT's, those of web interfaces, and names of layers in them."""
