"""zlaunch: one job description, one command, the same LoRA fine-tuning run on GPUs, SSH hosts or Slurm."""

__version__ = "0.2.0.dev0"
