"""The LoRA adapter: attached, started, exported, named as other trainers name it."""
