"""The paper's tables as rows of recipes, their runs, and one table beside the paper's numbers."""
