"""What the anchors say about a pair, a run and a data set; the pages that show it."""
