"""Caption metrics: pycocoevalcap's scorers and jars, run so that nothing they are known to trip over goes wrong."""
