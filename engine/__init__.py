"""Fine-tuning of Stable Diffusion as one exact, resumable job."""

__version__ = "0.1.0"
