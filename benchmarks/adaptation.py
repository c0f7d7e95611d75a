"""From ceT1 labels to hrT2: floor, ceiling and what each ingredient adds, by the real driver at the demo's budget.

python -m benchmarks.adaptation path/to/data --output runs/adaptation --seeds 0 1

Arms of one data set and seed work in one run folder, so that stages they have in common are done once. An arm that has
a result is not run again: the same command continues. The data set must hold ``heldout/``, which only the bounds read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from plugins.files import read_json, whole_file, write_json

ROOT = Path(__file__).parents[1]
DRIVER = ROOT / "bundles" / "vs_cochlea_uda"
SMALL, BEYOND = ["cpu.json"], ["cpu.json", "beyond.json"]
WINDOW = [105.0, 70.0, 60.0]
ALONE = {"rounds": 0, "weigh_views": False}
PLAIN = {"settings": {"vs_cochlea_seg": {"augmentation": None}}}

ARMS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "ceiling: labelled hrT2": ([*BEYOND, "oracle.json"], {**ALONE, "translate": "ceT1"}),
    "perfect translation": ([*BEYOND, "perfect.json"], {**ALONE, "translate": "ceT1"}),
    "all kept ingredients": (BEYOND, {}),
    "floor: ceT1": ([*SMALL, "source_only.json"], {"window": WINDOW, **PLAIN}),
    "floor + contrast randomisation": ([*BEYOND, "source_only.json"], {**ALONE, "translate": "ceT1"}),
    "redrawn alone": (BEYOND, {**ALONE, "views": ["redrawn"], **PLAIN}),
    "redrawn + contrast randomisation": (BEYOND, {**ALONE, "views": ["redrawn"]}),
    "the same + gated rounds": (BEYOND, {"views": ["redrawn"]}),
    "TANQ of redrawn scans alone": (BEYOND, {**ALONE, "views": ["tanq"]}),
    "redrawn + TANQ of redrawn scans": (BEYOND, ALONE),
    "all, ungated rounds": (BEYOND, {"gate": None}),
    "paper: TANQ + CycleGAN": (SMALL, {"window": WINDOW, **PLAIN}),
}
"""Overlays of the driver's ``train.json`` and further settings of each arm, in the order of their worth."""


def run_arm(name: str, dataset_dir: Path, seed: int, run_dir: Path) -> dict[str, Any]:
    """Run one arm, unless it has a result, and return that."""
    result_file = run_dir / "results" / f"{''.join(c if c.isalnum() else '_' for c in name)}.json"
    if result_file.is_file():
        content: dict[str, Any] = read_json(result_file)
        return content
    overlays, settings = ARMS[name]
    given = {**settings, "dataset_dir": str(dataset_dir), "output_dir": str(run_dir / "run"), "seed": seed}
    overrides = run_dir / "overrides.json"
    write_json(overrides, given)
    files = [*(str(DRIVER / "configs" / each) for each in ("train.json", *overlays)), str(overrides)]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--bundle_root", str(DRIVER)]
    subprocess.run([*command, "--config_file", json.dumps(files)], check=True, cwd=ROOT)
    parser = ConfigParser()
    parser.read_config(files)
    parser["bundle_root"] = str(DRIVER)
    stages = [stage.name for stage in parser.get_parsed_content("train::trainer").plan().stages()]
    content = summary(run_dir / "run", name, stages)
    write_json(result_file, content)
    return content


def summary(run: Path, name: str, stages: Sequence[str]) -> dict[str, Any]:
    """What a finished run says: Dice of its rounds, which one it hands over, contrasts of views, minutes of stages."""
    metrics = {key: value for key, value in read_json(run / "report" / "metrics.json").items() if key[:6] == "round_"}
    last = max(metrics)
    decision = run / last / "acceptance" / "accepted.json"
    final = read_json(decision)["model"] if f"{last}/acceptance" in stages else last
    views = run / "view_weights" / "views.json"
    seconds = [read_json(run / stage / "stage.json")["seconds"] for stage in stages]
    rounds = {}
    for number, content in metrics.items():
        cases = [
            [row[structure]["dice"] or 0.0 for structure in ("vs", "cochlea")] for row in content["cases"].values()
        ]
        rounds[number] = {
            "vs": float(np.mean([case[0] for case in cases])),
            "cochlea": float(np.mean([case[1] for case in cases])),
            "mean": float(np.mean(cases)),
            "failures": int(np.sum(np.array(cases) < 0.5)),
            "structures": 2 * len(cases),
        }
    return {
        "arm": name,
        "rounds": rounds,
        "final": final,
        "views": read_json(views) if "view_weights" in stages else {},  # another arm's may lie there
        "minutes": round(sum(seconds) / 60, 1),
    }


def table(results: Mapping[str, Sequence[Mapping[str, Any]]], ceiling: float | None) -> str:
    """Markdown: a row for each arm, means over seeds, and their spread where there are two."""
    lines = [
        "| arm | seeds | VS | cochlea | mean | failures | share of ceiling | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seeds in results.items():
        finals = [each["rounds"][each["final"]] for each in seeds]
        means = [each["mean"] for each in finals]
        spread = f" ({min(means):.3f} to {max(means):.3f})" if len(means) > 1 else ""
        cells = [
            name,
            str(len(seeds)),
            f"{np.mean([each['vs'] for each in finals]):.3f}",
            f"{np.mean([each['cochlea'] for each in finals]):.3f}",
            f"{np.mean(means):.3f}{spread}",
            "+".join(f"{each['failures']}/{each['structures']}" for each in finals),
            "" if ceiling is None else f"{np.mean(means) / ceiling:.2f}",
            f"{np.mean([each['minutes'] for each in seeds]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the arms, seed by seed, and write ``table.md`` after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset_dir", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    data = options.dataset_dir.absolute()
    for seed in options.seeds:
        for name in options.arms:
            run_dir = options.output.absolute() / data.name / f"seed_{seed}"
            results.setdefault(name, []).append(run_arm(name, data, seed, run_dir))
            bound = results.get("ceiling: labelled hrT2")
            ceiling = None if bound is None else float(np.mean([each["rounds"]["round_0"]["mean"] for each in bound]))
            text = table(results, ceiling)
            with whole_file(options.output / data.name / "table.md") as part:
                part.write_text(text + "\n", encoding="utf-8")
            print(text, flush=True)


if __name__ == "__main__":
    main()
