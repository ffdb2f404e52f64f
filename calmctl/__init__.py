"""calmctl: class-anchor-aligned generative modeling (CALM) for video-text retrieval and captioning."""
