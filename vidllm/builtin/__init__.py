"""The small model that ships: its weights, its card, and the recipe that made it."""
