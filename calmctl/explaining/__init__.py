"""What the anchors say about a video and a sentence, a collection, and how far it can be trusted."""
