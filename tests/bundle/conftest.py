"""One trained model that the tests of a session share."""

import pytest

from tests.helpers.bundle_runs import run


@pytest.fixture(scope="session")
def trained(phantoms, tmp_path_factory):
    """Output folder of one training, evaluated."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run("train", phantoms, folder)
    run("evaluate", phantoms, folder)
    return folder
