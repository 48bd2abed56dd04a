"""Annealing while a model trains: schedule, target structure, masks on weights and optimizer state."""
