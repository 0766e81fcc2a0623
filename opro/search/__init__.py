"""The search: history, race, objective, decision."""
