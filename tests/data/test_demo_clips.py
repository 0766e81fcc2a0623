"""The plan of the shipped clips."""

from collections import Counter

from data.building.recipe import recipe_path
from data.makers.demo_clips import plan, read_recipe


def test_plan_spreads_noise_clips_over_all_cells():
    cells = Counter(
        (duration, snr, category == "noise")
        for duration, snr, category in plan(read_recipe(recipe_path("demo")), "dev")
    )
    noise = [n for (_, _, is_noise), n in cells.items() if is_noise]
    assert sum(noise) == 50 and max(noise) <= 3
