"""What translators make of VS and cochlea in a given time: contrast, Dice by a segmenter of real hrT2, pictures.

python -m benchmarks.translators path/to/data --output runs/translators --minutes 4              # small networks
python -m benchmarks.translators path/to/data --output runs/translators --minutes 8 --full --amp # the paper's, on a GPU

Each translator trains for its share of the minutes. The data set must hold ``heldout/source_hrT2`` and
``heldout/training_target_labels``, which only the judge reads. A run that was stopped continues.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table

from benchmarks.ablation import ROOT, lists_of, segmenter_of, true_scans
from plugins.config.command import read_configs
from plugins.config.names import known_settings
from plugins.evaluation import evaluate_translations
from plugins.evaluation.fidelity import PERCENTILES
from plugins.evaluation.pictures import read_axial
from plugins.files import read_json, whole_file, write_json
from plugins.workflow import Stage, run_stages

TRANSLATORS = {
    "TANQ": ("tanq_translation", [], "given"),
    "CycleGAN": ("cyclegan_translation", [], "given"),
    "TANQ of redrawn scans": ("tanq_translation", ["beyond.json"], "redrawn"),
}
"""Bundle, overlays, and whether it learns from ceT1 as given or redrawn in the contrast of hrT2."""
COLUMNS = ["ceT1", "TANQ", "CycleGAN", "calibrated TANQ", "redrawn", "TANQ of redrawn scans", "true hrT2"]
MEASURES = ["vs_contrast", "cochlea_contrast", "vs_dice", "cochlea_dice"]


def redrawn_stages(run_dir: Path, dataset_dir: Path) -> list[Stage]:
    """The data set with redrawn ceT1 scans, and its lists."""
    return [
        Stage(
            name="redrawn_dataset",
            needs=("dataset",),
            function="plugins.workflow.windows.write_redrawn_dataset",
            overrides={"dataset_dir": str(dataset_dir), "output_dir": "{stage}"},
        ),
        Stage(
            name="redrawn",
            needs=("dataset",),
            function="plugins.workflow.redrawing.write_redrawn",
            overrides={
                "source": "{run}/dataset/source.json",
                "target": "{run}/dataset/target.json",
                "output_dir": "{stage}",
            },
        ),
    ]


def translator_stages(name: str, folder: str, files: Sequence[str], changes: Mapping[str, Any]) -> list[Stage]:
    """Training and translation of one translator."""
    bundle, overlays, data = TRANSLATORS[name]
    root = ROOT / "bundles" / bundle
    lists = "redrawn_dataset" if data == "redrawn" else "dataset"
    dataset = "{run}/redrawn_dataset" if data == "redrawn" else changes["dataset_dir"]
    settings = {key: value for key, value in changes.items() if key != "dataset_dir"}
    given: dict[str, Any] = {}
    for each in (*files, *overlays):
        given |= ConfigParser.load_config_file(root / "configs" / each)
    training = f"{folder}/training"
    places = {"dataset_dir": dataset, "cache_dir": "{stage}/cache", "ckpt_dir": "{stage}/models"}
    inference = known_settings(read_configs([root / "configs" / "inference.json"]), given | settings)
    places_after = {"datalist": f"{{run}}/{lists}/source.json", "ckpt_dir": f"{{run}}/{training}/models"}
    return [
        Stage(
            name=training,
            needs=(lists,),
            bundle=str(root),
            config_files=("train.json", *files, *overlays),
            overrides={**settings, **places, "output_dir": "{stage}"},
        ),
        Stage(
            name=f"{folder}/translation",
            needs=(lists, training),
            bundle=str(root),
            run_id="inference",
            config_files=("inference.json",),
            overrides={**inference, **places_after, "output_dir": "{stage}"},
        ),
    ]


def calibrated_stage(folder: str) -> Stage:
    """TANQ's translations with the brightness of their structures moved to that of hrT2."""
    return Stage(
        name="calibrated",
        needs=("dataset", f"{folder}/translation"),
        function="plugins.workflow.redrawing.write_calibrated",
        overrides={
            "source": "{run}/dataset/source.json",
            "translations_dir": f"{{run}}/{folder}/translation",
            "target": "{run}/dataset/target.json",
            "output_dir": "{stage}",
        },
    )


def draw(
    scans: Sequence[Mapping[str, str]], folders: Mapping[str, Path], metrics: Mapping[str, Any], file: Path
) -> None:
    """Two scans of each site: ceT1 and what was made of it, all in [0, 1], with the contrasts of VS and cochlea."""
    sites: dict[str, list[Mapping[str, str]]] = {}
    for scan in scans:
        sites.setdefault(scan["site"], []).append(scan)
    chosen = [scan for own in sites.values() for scan in own[:2]]
    figure = Figure(figsize=(2.1 * len(COLUMNS), 2.2 * len(chosen) + 0.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), len(COLUMNS), squeeze=False)
    for scan, line in zip(chosen, grid, strict=True):
        label, spacing = read_axial(scan["label"])
        both = np.minimum(*((np.rint(label) == value).sum(axis=(0, 1)) for value in (1, 2)))
        index = int(np.argmax(both if both.any() else (label > 0).sum(axis=(0, 1))))
        for axis, name in zip(line, COLUMNS, strict=True):
            path = scan["image"] if name == "ceT1" else folders[name] / f"{scan['case']}.nii.gz"
            volume, _ = read_axial(path)
            low, high = np.percentile(volume, PERCENTILES) if name == "ceT1" else (0.0, 1.0)
            extent = (0.0, volume.shape[0] * spacing[0], 0.0, volume.shape[1] * spacing[1])
            axis.imshow(volume[:, :, index].T, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent)
            for value, colour in ((1, "tab:red"), (2, "tab:cyan")):
                if (np.rint(label[:, :, index]) == value).any():
                    axis.contour(
                        value == np.rint(label[:, :, index]).T,
                        levels=[0.5],
                        colors=colour,
                        linewidths=0.6,
                        extent=extent,
                    )
            values = metrics.get(name, {}).get("cases", {}).get(scan["case"])
            told = (
                ""
                if values is None
                else f"\nVS {values['vs_contrast']:+.2f}, cochlea {values['cochlea_contrast']:+.2f}"
            )
            axis.set_title(name + told, fontsize=7)
            axis.invert_xaxis()
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{scan['case']}, slice {index + 1}", fontsize=6)
    with whole_file(file) as part:
        figure.savefig(part)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, translate, judge, draw; print the table and write ``translators.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0, help="of all translators together")
    parser.add_argument("--full", action="store_true", help="the paper's networks, not those of cpu.json")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where torch allows it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="trainings side by side")
    parser.add_argument("--judge_epochs", type=int, default=150, help="of the segmenter that judges, trained last")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings, such as channels=8"
    )
    given = parser.parse_args(arguments)
    dataset_dir, size = given.dataset_dir.absolute(), "full" if given.full else "small"
    run_dir = given.output.absolute() / dataset_dir.name / f"{size}_seed_{given.seed}"
    run_dir.mkdir(parents=True, exist_ok=True)
    truth = dataset_dir / "heldout" / "source_hrT2"
    changes: dict[str, Any] = {
        "dataset_dir": str(dataset_dir),
        "seed": given.seed,
        "device": f"$torch.device('{given.device}')",
        "max_minutes": given.minutes / len(TRANSLATORS),
        "foreground_probability": 0.5,
        **({"amp": True, "train::trainer::amp_kwargs": {"dtype": "$torch.bfloat16"}} if given.amp else {}),
        **{key: _literal(value) for key, value in (each.split("=", 1) for each in given.set)},
    }
    files = [] if given.full else ["cpu.json"]
    stages = [lists_of(dataset_dir), *redrawn_stages(run_dir, dataset_dir)]
    places = {name: name.lower().replace(" ", "_") for name in TRANSLATORS}
    for name, folder in places.items():
        stages += translator_stages(name, folder, files, changes)
    stages.append(calibrated_stage(places["TANQ"]))
    with ThreadPoolExecutor(given.workers) as executor:
        run_stages(stages, run_dir, executor)
    segmenter = segmenter_of(dataset_dir, given.output.absolute() / dataset_dir.name, given.judge_epochs)
    scans = read_json(run_dir / "dataset" / "source.json")["training"]
    folders = {name: run_dir / folder / "translation" for name, folder in places.items()}
    folders |= {"calibrated TANQ": run_dir / "calibrated", "redrawn": run_dir / "redrawn"}
    folders["true hrT2"] = true_scans(scans, truth, run_dir / "true_hrT2")
    metrics = {
        name: evaluate_translations(scans, folder, run_dir / "metrics" / f"{name}.json", truth, segmenter)
        for name, folder in folders.items()
    }
    write_json(run_dir / "translators.json", {name: each["mean"] for name, each in metrics.items()})
    draw(scans, folders, metrics, run_dir / "translators.png")
    table = Table("translation", *(measure.replace("_", " ") for measure in MEASURES))
    for name in COLUMNS[1:]:
        table.add_row(name, *(f"{metrics[name]['mean'][measure]:+.3f}" for measure in MEASURES))
    Console(width=110).print(table)
    print(f"{run_dir / 'translators.json'}, {run_dir / 'translators.png'}")


def _literal(text: str) -> Any:
    """A number, a list or a word, as on MONAI's command line."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main()
