"""The kinds of stages: a run of a bundle, and a call of a function of this package."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from plugins.config.command import read_configs
from plugins.config.names import as_id, is_computed, known_settings
from plugins.workflow.plan import INFERENCE, LOCATOR, REVERSE_CONFIG, RUN_IDS, TRAIN, Plan
from plugins.workflow.stage import Stage


def bundle_stage(
    plan: Plan,
    name: str,
    bundle: str,
    config: str,
    needs: Sequence[str],
    overrides: Mapping[str, Any],
    inputs: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
) -> Stage:
    """A run of a bundle by a config, and further ones over it.

    Overlays are written for ``train.json``. The other configs take those of an overlay's settings that they have,
    such as the size of a network; so it is with the settings of the run.
    """
    folder = plan.bundles_dir / bundle / "configs"
    prefix = "locator_" if config == LOCATOR else ""
    overlays = [prefix + name for name in plan.overlays if (folder / (prefix + name)).is_file()]
    files = [config, *also]
    given: dict[str, Any] = {"report": False} if config == INFERENCE else {}
    if config in (TRAIN, LOCATOR):
        files += overlays
    else:
        for overlay in overlays:
            given |= ConfigParser.load_config_file(folder / overlay)
    given |= plan.common
    if config == TRAIN and plan.max_epochs is not None:
        given["max_epochs"] = plan.max_epochs
    if config != LOCATOR:  # settings of the bundle are those of the segmentation
        given |= plan.settings.get(bundle, {})
    if isinstance(given.get("device"), str) and not is_computed(given["device"]):
        given["device"] = device_expression(given["device"])
    if REVERSE_CONFIG in also:
        given = _of_reverse_generator(given)
    return Stage(
        name=name,
        needs=tuple(dict.fromkeys(needs)),
        bundle=str(plan.bundles_dir / bundle),
        run_id=RUN_IDS[config],
        config_files=tuple(files),
        overrides={**known_settings(read_configs([folder / file for file in files]), given), **overrides},
        inputs=inputs,
    )


def call_stage(name: str, needs: Iterable[str], function: str, inputs: Iterable[str] = (), **arguments: Any) -> Stage:
    """A call of a function of this package, which writes into the stage's folder."""
    return Stage(
        name=name,
        needs=tuple(dict.fromkeys(needs)),
        function=f"plugins.workflow.{function}",
        overrides={**arguments, "output_dir": "{stage}"},
        inputs=tuple(inputs),
    )


def dataset_stage(scans: Mapping[str, Sequence[Mapping[str, str]]]) -> Stage:
    """The lists of source, target and validation scans; it is another stage as soon as a scan changes its list."""
    files = [scan[key] for each in scans.values() for scan in each for key in ("image", "label") if key in scan]
    lists = {name: [dict(scan) for scan in each] for name, each in scans.items()}
    return call_stage("dataset", (), "functions.write_dataset_lists", files, scans=lists)


def device_expression(name: str) -> str:
    """A torch device as configs hold it."""
    return f"$torch.device({name!r})"


def _of_reverse_generator(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the reverse generator as those of the network; a shared encoder is in its weights already."""
    found = {}
    for name, value in settings.items():
        node, *argument = as_id(name).split("::")
        if node == "generator_ts_def" and argument != ["encoder_of"]:
            found["::".join(["network_def", *argument])] = value
        elif node not in ("network_def", "generator_ts_def"):
            found[name] = value
    return found
