"""The LoRA method: attach an adapter, initialise it, export it, and read and write LoRA files."""
