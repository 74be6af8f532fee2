"""The program `export`: whole models and LoRA files for other programs."""
