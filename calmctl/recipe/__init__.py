"""The recipe: everything a run depends on, typed and strict."""

from calmctl.recipe.load import load_recipe, recipe_from_dict
from calmctl.recipe.schema import Recipe
from calmctl.recipe.shipped import list_recipes, resolve_recipe

__all__ = ["Recipe", "list_recipes", "load_recipe", "recipe_from_dict", "resolve_recipe"]
