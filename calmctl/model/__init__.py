"""The model: backbone, fusion heads, cross-modal VAE, and their composition. Knows tensors, not files."""
