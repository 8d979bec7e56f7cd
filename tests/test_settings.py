"""Every option of the configurations is a setting of the run or is named as none, and settings own their output folder."""

import contextlib
import json

import pytest
from monai.bundle import ConfigParser

from monai_wscxr.errors import find_input_error
from monai_wscxr.training.configs import described_options, find_configs, option_names
from monai_wscxr.training.options import NOT_SETTINGS, run_settings
from tests.helpers.bundle_runs import SMALL
from tests.helpers.bundle_runs import run as run_bundle

CONFIGS = find_configs()
PLAIN = ("discriminant.yaml", "logistic.yaml", "nearest.yaml")  # have no options of their own
METHODS = (
    *PLAIN,
    *(
        f"{name}.yaml"
        for name in (
            "patchcore",
            "simplenet",
            "cutpaste_reduced",
            "cutpaste",
            "anatpaste",
            "squid",
            "ddad",
            "ddad_intra",
        )
    ),
)
OVERLAYS = (*METHODS, "multi_gpu_train.yaml")
LEFT_OUT = {
    *("bundle_root", "output_dir", "overwrite", "device", "strict", "allow_overlap", "max_bad_share", "cache"),
    *(
        "extract_batch_size",
        "read_workers",
        "runtime",
        "bank_memory",
        "val_interval",
        "progress",
        "tensorboard",
        "mlflow",
    ),
    *("timeout", "rank", "networks_at_once", "normative_dir"),
}


def configuration(*overlays, **values):
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in ("train.yaml", *overlays)])
    parser.update(values)
    return parser


def settings(*overlays, **values):
    return configuration(*overlays, **values).get_parsed_content("settings")


@contextlib.contextmanager
def refused(sentence):
    """Expect an `InputError` with this sentence, however MONAI wraps it."""
    with pytest.raises(Exception, match=r"\w") as caught:
        yield
    error = find_input_error(caught.value)
    assert error is not None
    assert sentence in str(error)


def documented_options():
    """Keys of `train.yaml` above the key `split`, as its first lines promise."""
    keys = list(ConfigParser.load_config_file(str(CONFIGS / "train.yaml")))
    return [key for key in keys[: keys.index("split")] if key != "imports"]


def test_every_option_is_a_setting_or_is_named_as_none():
    options = documented_options()
    assert option_names(configuration().get()) == options
    assert [option.name for option in described_options(CONFIGS / "train.yaml")] == options
    assert set(settings()) == set(options) - LEFT_OUT
    assert {"k", "allow", "precision", "compile_network", "mix_hidden", "dataset_dir"} <= set(settings())


def test_the_options_that_are_no_settings_are_these():
    assert set(NOT_SETTINGS) == LEFT_OUT
    everywhere = {name for overlay in OVERLAYS for name in option_names(configuration(overlay).get())}
    assert everywhere >= LEFT_OUT  # none that does not exist


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_option_of_every_configuration_is_described(file):
    options = described_options(CONFIGS / file)
    assert bool(options) == (file not in PLAIN)
    assert [option.name for option in options if not option.comment] == []


@pytest.mark.parametrize("overlay", METHODS)
def test_a_compared_method_has_the_settings_of_train_and_its_own(overlay):
    own = {key for key in ConfigParser.load_config_file(str(CONFIGS / overlay)) if key[0] not in "+_"}
    own = {key for key in own if key in option_names(configuration(overlay).get())}
    assert bool(own) == (overlay not in PLAIN)
    assert "finalize" not in own  # a list of steps, also where it is empty
    assert set(settings(overlay)) == (set(settings()) | own | {"method"}) - LEFT_OUT
    assert settings(overlay)["method"] == overlay.removesuffix(".yaml")


def test_overrides_reach_the_settings():
    assert settings(k=3)["k"] == 3
    assert settings(seed="$1 + 1")["seed"] == 2
    with refused("must be a plain value"):
        settings(allow="$object()")


def test_settings_outside_of_a_configuration_are_an_error():
    with pytest.raises(RuntimeError, match="belongs into a configuration"):
        run_settings()


@pytest.mark.parametrize("change", [{"allow": ["lateral_view"]}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("overlay", [None, *OVERLAYS[:3]])
def test_another_gate_or_precision_needs_another_output_folder(phantoms, tmp_path, overlay, change):
    def folder_of(**values):
        overlays = [] if overlay is None else [overlay]
        parser = configuration(
            *overlays, dataset_dir=str(phantoms), output_dir=str(tmp_path / "run"), **{**SMALL, **values}
        )
        return parser.get_parsed_content("folder")

    first = folder_of()
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    del first
    folder_of()  # the same run may continue
    with refused("belongs to a run with other settings"):
        folder_of(**change)
    assert json.loads((tmp_path / "run" / "settings.json").read_text()) == kept


def test_a_setting_that_changes_is_named(phantoms, tmp_path):
    run_bundle("train", phantoms, tmp_path / "run")
    with refused("mix_hidden: False there, True now"):
        run_bundle("train", phantoms, tmp_path / "run", mix_hidden=True)
