"""Every config, without a GPU, data or an instantiation: names exist, arguments fit, references resolve."""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ReferenceResolver

ROOT = Path(__file__).parents[1]
DRIVER = "vs_cochlea_uda"
WITH_NETWORK = ["cyclegan_translation", "tanq_translation", "vs_cochlea_seg"]
TRANSLATORS = WITH_NETWORK[:2]
BUNDLES = [*WITH_NETWORK, DRIVER]
LOCATOR = ComponentLocator()

EVERYWHERE = ["bundle_root", "dataset_dir", "output_dir", "device", "seed", "num_threads", "run"]
IN_TRAINING = ["max_epochs", "train::trainer", "training"]
OF_A_NETWORK = ["ckpt_dir", "network_def", "network"]  # the driver has none of its own


def load(path: Path) -> dict[str, Any]:
    """A config as JSON; MONAI only warns of a key that stands twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        assert not twice, f"{path.name}: {twice} twice in one object"
        return dict(pairs)

    return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)


def files() -> list[Path]:
    return [path for path in sorted(ROOT.glob("bundles/*/configs/*.json")) if path.name != "metadata.json"]


def is_overlay(path: Path) -> bool:
    """Whether a config only changes another; a complete one has a root."""
    return path.name not in {"train.json", "inference.json"} and "bundle_root" not in load(path)


def bases(overlay: Path) -> list[dict[str, Any]]:
    """The configs of the same bundle that the overlay fits onto, that is: that have all of its keys."""
    complete = [load(path) for path in files() if path.parent == overlay.parent and not is_overlay(path)]
    if overlay.name.endswith("_train.json"):
        complete = [load(overlay.with_name("train.json"))]
    return [config for config in complete if not missing(load(overlay), config)]


def missing(overlay: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """The ids that a config neither has nor could have: an argument that a component takes may be given anew."""
    parser = ConfigParser(base)
    return [
        key
        for key in overlay
        if key.lstrip("+") not in parser and not is_argument(parser, key) and not is_setting(parser, key)
    ]


def is_argument(parser: ConfigParser, key: str) -> bool:
    node, _, name = key.rpartition("::")
    is_component = node in parser and ConfigComponent.is_instantiable(parser[node])
    return is_component and name in inspect.signature(locate(parser[node]["_target_"])).parameters


def is_setting(parser: ConfigParser, key: str) -> bool:
    """Whether the driver takes it as a setting that the training of another bundle has."""
    node, _, name = key.rpartition("::")
    if node not in parser or not node.startswith("settings::"):
        return False
    return name in load(ROOT / "bundles" / node.removeprefix("settings::") / "configs" / "train.json")


def merged() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each complete config, and each with each overlay that fits it."""
    for path in files():
        name = f"{path.parents[1].name}/{path.stem}"
        if not is_overlay(path):
            yield name, load(path)
            continue
        for base in bases(path):
            parser = ConfigParser(base)
            parser.update({key: value for key, value in load(path).items() if not key.startswith("+")})
            yield name, parser.get()


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config, with its id."""
    yield path, config
    if isinstance(config, dict | list):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            yield from nodes(value, f"{path}::{key}" if path else str(key))


def strings(config: Any) -> list[tuple[str, str]]:
    return [(path, value) for path, value in nodes(config) if isinstance(value, str)]


def locate(target: str) -> Any:
    module = LOCATOR.get_component_module_name(target)
    assert not isinstance(module, list), f"{target} is ambiguous: {module}"
    return pydoc.locate(f"{module}.{target}" if module else target)


def faults_of_component(node: dict[str, Any]) -> str:
    """What is wrong with a ``_target_`` node: empty if nothing."""
    target = node["_target_"]
    if not isinstance(target, str) or target.startswith(("$", "@")):
        return ""
    component = locate(target)
    if component is None:
        return f"cannot locate {target}"
    try:
        signature = inspect.signature(component)
    except ValueError:  # some built-ins have none
        return ""
    bind = signature.bind_partial if node.get("_mode_") == "callable" else signature.bind
    try:
        bind(**{key: value for key, value in node.items() if key not in ConfigComponent.non_arg_keys})
    except TypeError as error:
        return f"{target}: {error}"
    return ""


def network_arguments(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The class of ``network_def`` and all of its arguments, with the values of knobs and defaults filled in."""
    parser = ConfigParser(config)
    node = {
        key: parser[value[1:]] if isinstance(value, str) and value.startswith("@") else value
        for key, value in config["network_def"].items()
    }
    arguments = {key: value for key, value in node.items() if key not in ConfigComponent.non_arg_keys}
    bound = inspect.signature(locate(node["_target_"])).bind(**arguments)
    bound.apply_defaults()
    return node["_target_"], {k: list(v) if isinstance(v, tuple) else v for k, v in bound.arguments.items()}


def is_public(name: str) -> bool:
    """Whether ``plugins.<part>.<Name>`` is one that its part offers."""
    if name.count(".") != 2:
        return False
    part, _, short = name.rpartition(".")
    module = pydoc.locate(part)
    offered = getattr(module, "__all__", None) or [key for key in vars(module) if not key.startswith("_")]
    return short in offered and hasattr(module, short)


def by_name(paths: list[Path]) -> dict[str, Any]:
    return {"argvalues": paths, "ids": [f"{path.parents[1].name}/{path.stem}" for path in paths]}


all_files = pytest.mark.parametrize("path", **by_name(files()))
all_merged = pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in merged()])


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("name", ["train.json", "inference.json", "cpu.json", "metadata.json"])
def test_every_bundle_has_its_configs(bundle, name):
    assert (ROOT / "bundles" / bundle / "configs" / name).is_file()


@all_merged
def test_components_exist_and_take_these_arguments(config):
    faults = {
        path: faults_of_component(node) for path, node in nodes(config) if isinstance(node, dict) and "_target_" in node
    }
    assert {path: fault for path, fault in faults.items() if fault} == {}


@all_merged
def test_references_resolve(config):
    parser = ConfigParser(config)
    wrong = []
    for path, text in strings(config):
        absolute = parser.resolve_relative_ids(path, text)
        wanted = list(ReferenceResolver.match_refs_pattern(absolute))
        if absolute.startswith("%") and ".json" not in absolute:
            wanted.append(ReferenceResolver.normalize_id(absolute[1:]))
        wrong += [f"{path}: {text}" for id in wanted if id not in parser]
    assert wrong == []


@all_files
def test_only_public_names_of_plugins_are_used(path):
    pattern = re.compile(r"\bplugins(?:\.\w+)+")
    used = {name for _, text in strings(load(path)) for name in pattern.findall(text)}
    imports = {text.split()[-1] for _, text in strings(load(path)) if text.startswith(("$import ", "$from "))}
    assert sorted(name for name in used - imports if not is_public(name)) == []


@all_files
def test_no_expression_mixes_import_and_reference(path):
    """MONAI takes such an expression for an import statement, or fails to compile it."""
    assert [text for _, text in strings(load(path)) if text.startswith("$") and "import" in text and "@" in text] == []


@all_files
def test_expressions_read_checkpoints_without_running_code(path):
    texts = [text for _, text in strings(load(path)) if "torch.load(" in text]
    assert [text for text in texts if "weights_only=True" not in text] == []


@all_files
def test_expressions_are_short(path):
    """At most 60 characters behind the ``$``; what needs more is a function in ``plugins``."""
    assert [text for _, text in strings(load(path)) if text.startswith("$") and len(text) > 61] == []


@pytest.mark.parametrize("bundle", TRANSLATORS)
def test_a_translators_configs_stay_short(bundle):
    folder = ROOT / "bundles" / bundle / "configs"
    lines = (folder / "train.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 130
    assert max(map(len, lines)) <= 130
    overlays = [path for path in files() if path.parent == folder and is_overlay(path) and path.name != "cpu.json"]
    assert {path.name: len(load(path)) for path in overlays if not 1 <= len(load(path)) <= 4} == {}


@all_files
def test_no_path_of_one_machine(path):
    assert [
        text for _, text in strings(load(path)) if text.startswith(("/", "~")) or re.match(r"[A-Za-z]:\\", text)
    ] == []


@pytest.mark.parametrize("path", **by_name([path for path in files() if not is_overlay(path)]))
def test_a_complete_config_keeps_the_contract(path):
    config = load(path)
    wanted = EVERYWHERE + (IN_TRAINING if path.name == "train.json" else [path.stem])
    if path.name in ("evaluate.json", "compare.json") and path.parents[1].name == DRIVER:
        wanted = [name for name in wanted if name != "device"]  # it computes on none
    if path.name == "compare.json":
        wanted = [name for name in wanted if name != "dataset_dir"]  # it reads tables, no scans
    if path.name == "train.json" and path.parents[1].name != DRIVER:
        wanted = wanted + OF_A_NETWORK
    assert missing(dict.fromkeys(wanted), config) == []
    assert "plugins.runtime.start" in json.dumps(config.get("initialize")), "initialize must call plugins.runtime.start"


@pytest.mark.parametrize("path", **by_name([path for path in files() if is_overlay(path)]))
def test_an_overlay_only_overrides_what_exists(path):
    """MONAI adds a misspelt key without a word, and the old value stays."""
    overlay, train = load(path), path.with_name("train.json")
    assert bases(path), f"not in train.json: {missing(overlay, load(train))}"


@pytest.mark.parametrize("bundle", WITH_NETWORK)
def test_training_and_inference_build_the_same_network(bundle):
    """The same class with the same arguments, once knobs and defaults are filled in."""
    folder = ROOT / "bundles" / bundle / "configs"
    assert network_arguments(load(folder / "train.json")) == network_arguments(load(folder / "inference.json"))


def unused(config: dict[str, Any], entries: list[str]) -> list[str]:
    """The outermost ids that nothing reads on the way from the entries."""
    parser, read, waiting = ConfigParser(config), set(), deque(entries)
    while waiting:
        id = waiting.popleft()
        if id not in read:
            read.add(id)
            found = strings(parser[id]) if isinstance(parser[id], (dict, list)) else [("", parser[id])]
            for path, text in found:
                absolute = parser.resolve_relative_ids(f"{id}::{path}".rstrip(":"), str(text))
                waiting += ReferenceResolver.match_refs_pattern(absolute)
    held = {id.rsplit("::", depth)[0] for id in read for depth in range(1, 1 + id.count("::"))}

    def found_unread(id: str) -> list[str]:
        if id in read:
            return []
        return [each for key in parser[id] for each in found_unread(f"{id}::{key}")] if id in held else [id]

    return [each for key in config for each in found_unread(key)]


DRIVERS = [
    pytest.param(config, id=name) for name, config in merged() if name.startswith(DRIVER) and "initialize" in config
]


@pytest.mark.parametrize(
    ("config", "given", "default"),
    [
        ("vs_cochlea_seg/configs/evaluate.json", "cases_file", "pred_dir"),
        (f"{DRIVER}/configs/evaluate.json", "cases_file", "pred_dir"),
        (f"{DRIVER}/configs/inference.json", "run_dir", "ckpt_dir"),
    ],
)
def test_a_default_folder_steps_back_for_what_is_given_in_its_place(config, given, default):
    content = load(ROOT / "bundles" / config)
    assert ConfigParser(dict(content)).get_parsed_content(default).startswith("./")
    assert ConfigParser({**content, given: "mine"}).get_parsed_content(default) is None
    assert ConfigParser({**content, given: "mine", default: "both"}).get_parsed_content(default) == "both"


@pytest.mark.parametrize("config", DRIVERS)
def test_the_driver_has_no_node_that_its_run_does_not_read(config):
    """``%run`` are other names of the run; the network of an inference is what MONAI's ``ckpt_export`` writes."""
    names = [name for name, value in config.items() if value == "%run"]
    exported = [name for name in ("network_def",) if "inference" in config]
    assert unused(config, ["initialize", "run", *names, *exported]) == []


# The checks above would also pass if they saw nothing; here is what they must see.


def test_the_check_for_unread_nodes_sees():
    used = {"a": "@b", "b": {"c": "$1 + @d"}, "d": None, "e": {"f": "@a", "g": 1}, "run": ["$@e::f"]}
    assert unused(used, ["run"]) == ["e::g"]
    assert unused(used | {"run": ["@d"]}, ["run"]) == ["a", "b", "e"]


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        ({"_target_": "torch.optim.Adam", "params": [], "lr": 1}, ""),
        ({"_target_": "torch.optim.Adam", "params": [], "learning_rate": 1}, "unexpected keyword"),
        ({"_target_": "torch.optim.Adam", "lr": 1}, "missing a required argument"),
        ({"_target_": "torch.optim.Adam", "_mode_": "callable", "lr": 1}, ""),
        ({"_target_": "torch.optim.Adamm"}, "cannot locate"),
        ({"_target_": "SimpleInferer", "_desc_": "text"}, ""),
        ({"_target_": "plugins.errors.InputErrorr"}, "cannot locate"),
        ({"_target_": "$@network.forward", "x": 1}, ""),
    ],
)
def test_the_component_check_sees(node, fault):
    found = faults_of_component(node)
    assert fault in found
    assert bool(found) == bool(fault)


@pytest.mark.parametrize(
    ("key", "there"),
    [("a", True), ("a::b", True), ("+a", True), ("a#b", True), ("c", False), ("a::c", False), ("c::b", False),
     ("adam::lr", True), ("adam::learning_rate", False)],
)  # fmt: skip
def test_the_overlay_check_sees(key, there):
    base = {"a": {"b": None}, "adam": {"_target_": "torch.optim.Adam"}}
    assert missing({key: 1}, base) == ([] if there else [key])


@pytest.mark.parametrize(
    ("name", "public"),
    [("plugins.errors.InputError", True), ("plugins.errors._hook", False), ("plugins.errors.InputError.args", False)],
)
def test_the_public_name_check_sees(name, public):
    assert is_public(name) == public
