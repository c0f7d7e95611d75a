"""The paper's ablation of the translation, small: every method, several seeds, the same budget, judged by true hrT2.

python -m benchmarks.ablation path/to/data --output runs/ablation

The data set must hold what no training reads: ``heldout/source_hrT2`` and ``heldout/training_target_labels``. A run
that was stopped continues when started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_rel

from benchmarks.segmenter import train_segmenter
from plugins.config.command import read_configs
from plugins.config.names import known_settings
from plugins.data import crossmoda_datalist, heldout_labels
from plugins.evaluation import SliceSegmenter, evaluate_translations, translation_picture
from plugins.evaluation.fidelity import PERCENTILES
from plugins.files import read_json, whole_file, write_json
from plugins.store import digest_of
from plugins.workflow import Stage, run_stages
from plugins.workflow.functions import SPLITS
from plugins.workflow.making import dataset_stage

ROOT = Path(__file__).parents[1]
METHODS = {
    "CycleGAN": ("cyclegan_translation", []),
    "CUT": ("tanq_translation", ["cut.json"]),
    "QS-Attn": ("tanq_translation", ["qs_attn.json"]),
    "TANQ without RAIN": ("tanq_translation", ["without_rain.json"]),
    "TANQ without SegDecoder": ("tanq_translation", ["without_seg_decoder.json"]),
    "RN on both": ("tanq_translation", ["rn_both.json"]),
    "TANQ": ("tanq_translation", []),
    "TANQ, nearest masks": ("tanq_translation", [{"network_def::region_reduction": "nearest"}]),
    "TANQ, regions of 8 pixels on": ("tanq_translation", [{"network_def::min_region_pixels": 8}]),
}
MEASURES = ("vs_dice", "cochlea_dice", "mean_dice", "vs_contrast_error", "cochlea_contrast_error", "slice_jump")
FIGURE_4 = {"none": "QS-Attn", "RN on both": "RN on both", "RN and RAIN": "TANQ"}


def folder_of(method: str, seed: int) -> str:
    """Folder of a method's stages below the run."""
    return f"{method.lower().replace(', ', '_').replace(' ', '_')}/seed_{seed}"


def stages_of(method: str, seed: int, dataset_dir: Path, changes: Mapping[str, Any]) -> list[Stage]:
    """Training and translation of one method."""
    bundle, differences = METHODS[method]
    root = ROOT / "bundles" / bundle
    files = [name for name in differences if isinstance(name, str)]
    settings = {key: value for each in differences if isinstance(each, dict) for key, value in each.items()}
    settings |= {"seed": seed, "device": "$torch.device('cpu')", **changes}
    training, translation = f"{folder_of(method, seed)}/training", f"{folder_of(method, seed)}/translation"
    given = {}
    for name in ("cpu.json", *files):
        given |= ConfigParser.load_config_file(root / "configs" / name)
    return [
        Stage(
            name=training,
            needs=("dataset",),
            bundle=str(root),
            config_files=("train.json", "cpu.json", *files),
            overrides={
                **settings,
                "dataset_dir": str(dataset_dir),
                "cache_dir": "{run}/cache",
                "ckpt_dir": "{stage}/models",
                "output_dir": "{stage}",
            },
        ),
        Stage(
            name=translation,
            needs=("dataset", training),
            bundle=str(root),
            run_id="inference",
            config_files=("inference.json",),
            overrides={
                **known_settings(read_configs([root / "configs" / "inference.json"]), given | settings),
                "datalist": "{run}/dataset/source.json",
                "ckpt_dir": f"{{run}}/{training}/models",
                "output_dir": "{stage}",
            },
        ),
    ]


def lists_of(dataset_dir: Path) -> Stage:
    """Lists of scans."""
    return dataset_stage({name: crossmoda_datalist(dataset_dir, split) for name, split in SPLITS.items()})


def segmenter_of(dataset_dir: Path, run_dir: Path, epochs: int = 150) -> SliceSegmenter:
    """The judge of target preservation, trained on the real target scans and their held-out labels."""
    labels = heldout_labels(dataset_dir, "training_target")
    scans = [
        {"image": scan["image"], "label": labels[scan["case"]]}
        for scan in crossmoda_datalist(dataset_dir, "training_target")
    ]
    content = digest_of([scan[key] for scan in scans for key in ("image", "label")], epochs)
    file = run_dir / f"segmenter_{content[:16]}.ts"
    if not file.is_file():
        train_segmenter(scans, file, epochs)
    return SliceSegmenter(str(file))


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the paired t-test of each method against TANQ over cases."""
    content: dict[str, Any] = {}
    for method, seeds in runs.items():
        content[method] = {}
        for measure in MEASURES:
            values = [run["mean"][measure] for run in seeds]
            own, others = per_case(seeds, measure), per_case(runs.get("TANQ", seeds), measure)
            pairs = [(own[case], others[case]) for case in own if case in others]
            different = "TANQ" in runs and any(a != b for a, b in pairs)
            p = float(ttest_rel(*zip(*pairs, strict=True)).pvalue) if different else None
            content[method][measure] = {
                "mean": float(np.mean(values)),
                "std_over_seeds": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                "p_against_tanq": p,
            }
    return content


def per_case(seeds: Sequence[Mapping[str, Any]], measure: str) -> dict[str, float]:
    """Each case's mean over seeds, for the cases that have the measure."""
    cases = {case: [run["cases"][case][measure] for run in seeds] for case in seeds[0]["cases"]}
    return {case: float(np.mean(values)) for case, values in cases.items() if None not in values}


def print_table(content: Mapping[str, Any]) -> None:
    """Show a summary."""
    table = Table("method", *(measure.replace("_", " ") for measure in MEASURES))
    for method, values in content.items():
        cells = []
        for measure in MEASURES:
            spread = values[measure]["std_over_seeds"]
            cells.append(f"{values[measure]['mean']:.3f}" + (f" ± {spread:.3f}" if spread is not None else ""))
        table.add_row(method, *cells)
    Console(width=140).print(table)


def true_scans(scans: Sequence[Mapping[str, str]], truth: Path, folder: Path) -> Path:
    """The true hrT2 scans, scaled to [0, 1] as translations are, under the names of translations."""
    for scan in scans:
        image = nib.load(truth / f"{scan['case']}_hrT2.nii.gz")
        volume = np.asarray(image.dataobj, dtype=np.float32)
        low, high = np.percentile(volume, PERCENTILES)
        with whole_file(folder / f"{scan['case']}.nii.gz") as part:
            nib.save(nib.Nifti1Image(np.clip((volume - low) / (high - low), 0, 1), image.affine), part)
    return folder


def main() -> None:
    """Train, translate, evaluate, and draw the panel."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("dataset_dir", type=Path)
    arguments.add_argument("--output", type=Path, default=Path("runs/ablation"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    arguments.add_argument("--max_epochs", type=int, default=8)
    arguments.add_argument("--workers", type=int, default=2, help="trainings side by side")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    dataset_dir, run_dir = given.dataset_dir.absolute(), given.output.absolute()
    truth = dataset_dir / "heldout" / "source_hrT2"
    run_dir.mkdir(parents=True, exist_ok=True)
    segmenter = segmenter_of(dataset_dir, run_dir)
    changes = {"max_epochs": given.max_epochs, "val_interval": given.max_epochs}
    order = [(method, seed) for seed in given.seeds for method in given.methods]
    stages = [lists_of(dataset_dir)]
    for method, seed in order:
        stages += stages_of(method, seed, dataset_dir, changes)
    with ThreadPoolExecutor(given.workers) as executor:
        run_stages(stages, run_dir, executor)

    scans = read_json(run_dir / "dataset" / "source.json")["training"]
    true_dir = true_scans(scans, truth, run_dir / "true_hrT2")
    ceiling = evaluate_translations(scans, true_dir, run_dir / "metrics" / "true_hrT2.json", truth, segmenter)
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in given.methods}
    for method, seed in order:
        name = folder_of(method, seed)
        metrics = run_dir / "metrics" / f"{name.replace('/', '_')}.json"
        runs[method].append(evaluate_translations(scans, run_dir / name / "translation", metrics, truth, segmenter))
    content = summary(runs)
    write_json(run_dir / "ablation.json", {"methods": content, "true_hrT2": ceiling["mean"]})
    columns = {
        title: run_dir / folder_of(method, given.seeds[0]) / "translation"
        for title, method in FIGURE_4.items()
        if method in given.methods
    }
    translation_picture(scans[:3], {**columns, "true hrT2": true_dir}, run_dir / "figure_4.png")
    print_table(content)
    print(f"the same segmenter on the true hrT2: {ceiling['mean']}")
    print(f"{run_dir / 'ablation.json'}, {run_dir / 'figure_4.png'}")


if __name__ == "__main__":
    main()
