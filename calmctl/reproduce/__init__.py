"""The paper's tables as rows of recipes, run over seeds, beside its numbers."""
