"""Class anchors: vocabularies of labels, the bank they become, and distributions over it."""
