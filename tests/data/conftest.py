"""What several tests of clip sets start from."""

import pytest
from small_recordings import make_recordings, recipe_file


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return make_recordings(tmp_path_factory.mktemp("source"))


@pytest.fixture
def recipe(tmp_path):
    return recipe_file(tmp_path)
