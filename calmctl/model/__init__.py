"""What is trained: backbone, heads, alignment and captioner, as functions and modules of tensors."""
