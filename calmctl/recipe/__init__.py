"""Recipes: everything a run depends on, typed and strict."""

from calmctl.recipe.load import list_recipes, load_recipe, recipe_from_dict, resolve_recipe
from calmctl.recipe.schema import Recipe

__all__ = ["Recipe", "list_recipes", "load_recipe", "recipe_from_dict", "resolve_recipe"]
