"""Training an ANN robustly, and fine-tuning the SNN that it becomes."""
