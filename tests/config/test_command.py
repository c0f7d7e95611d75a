"""Misspelt ids and options are refused with the nearest right one."""

import pytest

from plugins.config.command import command_line, read_configs, refuse_unknown_options
from plugins.config.names import known_settings, refuse_unknown_ids
from plugins.errors import InputError
from plugins.files import write_json

CONFIG = {"max_epochs": 3, "train": {"dataset": {"cache_rate": 1.0}, "handlers": [{"interval": 1}]}, "training": []}


@pytest.mark.parametrize(
    "name", ["max_epochs", "train::dataset::cache_rate", "train#dataset", "+train", "train::handlers::0::interval"]
)
def test_known_ids_pass(name):
    refuse_unknown_ids(CONFIG, [name], "config")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("max_epoch", "max_epochs"),
        ("trian::dataset", "train"),
        ("train::dataset::cash_rate", "train::dataset::cache_rate"),
        ("train::handlers::1", "train::handlers::0"),
    ],
)
def test_unknown_ids_are_refused(name, near):
    with pytest.raises(InputError, match=f"Did you mean '{near}'"):
        refuse_unknown_ids(CONFIG, [name], "config")


def test_an_empty_dictionary_may_be_given_anything():
    refuse_unknown_ids({"settings": {"tanq_translation": {}}}, ["settings::tanq_translation::max_epochs"], "config")


def test_an_id_below_a_plain_value_is_refused():
    with pytest.raises(InputError):
        refuse_unknown_ids(CONFIG, ["max_epochs::x"], "config")


def test_fitting_settings_are_those_the_config_has():
    settings = {"max_epochs": 1, "train::dataset::cache_rate": 0, "batch_size": 2, "train::loader::x": 3}
    assert known_settings(CONFIG, settings) == {"max_epochs": 1, "train::dataset::cache_rate": 0}


@pytest.fixture
def command(tmp_path):
    write_json(tmp_path / "train.json", CONFIG)
    write_json(tmp_path / "cpu.json", {"train::dataset::cache_rate": 0})
    write_json(tmp_path / "bad.json", {"max_epoch": 0})

    def make(*options, files=("train.json", "cpu.json")):
        paths = str([str(tmp_path / file) for file in files])
        program = ["/x/monai/bundle/__main__.py", "run", "training"]
        return [*program, "--config_file", paths, "--meta_file", "m.json", *options]

    return make


def test_the_command_line_is_read_as_monai_reads_it(command):
    refuse_unknown_options(command("--max_epochs", "3", "--train::dataset::cache_rate=0"))
    refuse_unknown_options(["pytest", "--max_epoch", "3"])
    with pytest.raises(InputError, match=r"train\.json has no 'max_epoch'. Did you mean 'max_epochs'"):
        refuse_unknown_options(command("--max_epoch", "3"))
    with pytest.raises(InputError, match=r"bad\.json"):
        refuse_unknown_options(command(files=("train.json", "bad.json")))


def test_a_complete_config_may_follow_another(command, tmp_path):
    write_json(tmp_path / "evaluate.json", {"pred_dir": None})
    both = ("train.json", "evaluate.json")
    refuse_unknown_options(command("--pred_dir", "x", files=both))
    with pytest.raises(InputError, match="Did you mean 'pred_dir'"):
        refuse_unknown_options(command("--pred_dri", "x", files=both))


def test_an_option_may_lie_below_what_an_overlay_brings(command, tmp_path):
    write_json(tmp_path / "train.json", {**CONFIG, "executor": None})
    write_json(tmp_path / "pool.json", {"executor": {"_target_": "dict", "max_workers": 1}})
    refuse_unknown_options(command("--executor::max_workers", "2", files=("train.json", "pool.json")))
    with pytest.raises(InputError, match="Did you mean 'executor::max_workers'"):
        refuse_unknown_options(command("--executor::max_worker", "2", files=("train.json", "pool.json")))


def test_flags_and_hyphens_are_read_as_fire_reads_them(command):
    given = command_line(command("--train-now", "--max-epochs", "4", "--noresume"))
    assert given is not None
    assert given.options == {"train_now": True, "max_epochs": 4, "resume": False}


def test_a_misspelt_section_to_run_is_refused(command):
    arguments = command()
    arguments[2] = "trainig"
    with pytest.raises(InputError, match=r"train\.json has no 'trainig'. Did you mean 'training'"):
        refuse_unknown_options(arguments)


def test_the_config_that_runs_has_the_options_in_their_places(command, tmp_path):
    write_json(tmp_path / "args.json", {"max_epochs": 7, "config_file": "unused"})
    given = command_line(command("--train#dataset#cache_rate", "0.5", "--args_file", str(tmp_path / "args.json")))
    assert given is not None
    assert given.sections == ["training"]
    config = given.config()
    assert (config["max_epochs"], config["train"]["dataset"]["cache_rate"]) == (7, 0.5)
    assert given.base()["train"]["dataset"]["cache_rate"] == 1.0


def test_an_overlay_may_hold_what_a_sibling_config_has(command, tmp_path):
    write_json(tmp_path / "inference.json", {"output_dir": "x", "training": []})
    write_json(tmp_path / "overlay.json", {"max_epochs": 3, "output_dir": "y"})
    refuse_unknown_options(command(files=("inference.json", "overlay.json")))
    with pytest.raises(InputError, match=r"inference\.json has no 'max_epochs'"):
        refuse_unknown_options(command("--max_epochs", "3", files=("inference.json", "overlay.json")))


def test_an_overlay_that_changes_nothing_is_refused_with_the_config_that_it_is_for(command, tmp_path):
    write_json(tmp_path / "inference.json", {"weights": "x", "training": []})
    write_json(tmp_path / "reverse.json", {"weights": "y"})
    refuse_unknown_options(command(files=("inference.json", "reverse.json")))
    refused = r"reverse\.json changes nothing of train\.json\. Give it after inference\.json\."
    with pytest.raises(InputError, match=refused):
        refuse_unknown_options(command(files=("train.json", "reverse.json")))


def test_an_overlay_may_hold_values_that_another_one_reads(command, tmp_path):
    write_json(tmp_path / "values.json", {"mine": {"epochs": 3}})
    write_json(tmp_path / "use.json", {"max_epochs": "@mine::epochs"})
    refuse_unknown_options(command(files=("train.json", "values.json", "use.json")))
    write_json(tmp_path / "use.json", {"mine": {"epochs": 3}, "max_epochs": "$@mine['epochs']"})
    write_json(tmp_path / "values.json", {"mine::epochs": 5})
    refuse_unknown_options(command(files=("train.json", "use.json", "values.json")))


def test_an_overlay_for_a_training_may_follow_another_config(command, tmp_path):
    write_json(tmp_path / "inference.json", {"weights": "x", "training": []})
    write_json(tmp_path / "two_speed.json", {"max_epochs": 3})
    refuse_unknown_options(command(files=("inference.json", "two_speed.json")))


def test_a_section_of_ones_own_may_be_brought_along_if_something_reads_it(command, tmp_path):
    write_json(tmp_path / "own.json", {"mine": 1, "max_epochs": "@mine", "imports": ["$import os"], "_meta_": {}})
    refuse_unknown_options(command(files=("train.json", "own.json")))
    refuse_unknown_options(
        command("--mine", "3", "--max_epochs", "@mine", "--train::own", "1", "--training", "$@train::own")
    )
    write_json(tmp_path / "own.json", {"mine": 1, "max_epochs": "@min"})
    with pytest.raises(InputError, match=r"own\.json has no 'mine'"):
        refuse_unknown_options(command(files=("train.json", "own.json")))


def test_a_component_may_get_what_it_takes(command, tmp_path):
    write_json(
        tmp_path / "train.json", {**CONFIG, "loader": {"_target_": "torch.utils.data.DataLoader", "dataset": []}}
    )
    refuse_unknown_options(command("--loader::batch_size", "2", "--loader#_disabled_", "True"))
    refuse_unknown_options(command("--loader::_target_", "torch.nn.Linear", "--loader::in_features", "2"))
    with pytest.raises(InputError, match="Did you mean 'loader::batch_size'"):
        refuse_unknown_options(command("--loader::batch_sise", "2"))
    with pytest.raises(InputError, match="loader::in_features"):
        refuse_unknown_options(command("--loader::in_features", "2"))


def test_other_sections_to_run_may_come_from_an_overlay(command, tmp_path):
    write_json(tmp_path / "own.json", {"prepare": [], "max_epochs": 2})
    refuse_unknown_options(command("--init_id", "prepare", files=("train.json", "own.json")))
    with pytest.raises(InputError, match=r"has no 'prepar'\. Did you mean 'prepare'"):
        refuse_unknown_options(command("--final_id", "prepar", files=("train.json", "own.json")))


def test_an_overlay_of_another_bundle_is_refused_as_such(command, tmp_path):
    write_json(tmp_path / "other" / "train.json", {"rounds": 1})
    for settings in ({"rounds": 0}, {"max_epochs": 2}):
        write_json(tmp_path / "other" / "cpu.json", settings)
        (tmp_path / "other" / "metadata.json").touch()
        with pytest.raises(InputError, match=r"other/cpu\.json is for another bundle\. Take an overlay from"):
            refuse_unknown_options(command(files=("train.json", "other/cpu.json")))
    (tmp_path / "other" / "metadata.json").unlink()  # a folder of one's own
    refuse_unknown_options(command(files=("train.json", "other/cpu.json")))


def test_an_overlay_before_the_file_that_it_is_to_change_is_refused(command):
    with pytest.raises(
        InputError, match=r"cpu\.json stands before train\.json, which replaces it\. Name train\.json first"
    ):
        refuse_unknown_options(command(files=("cpu.json", "train.json")))


def test_what_is_null_has_nothing_below_it(command, tmp_path):
    write_json(tmp_path / "own.json", {"gate": None, "training": "@gate"})
    with pytest.raises(InputError, match=r"gate is null, so it has no 'min_vote'\. Set gate as a whole"):
        refuse_unknown_options(command("--gate::min_vote", "0.6", files=("own.json",)))


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_file_that_is_no_json_object_is_named(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(InputError, match=r"broken\.json is no JSON config"):
        read_configs([tmp_path / "broken.json"])
