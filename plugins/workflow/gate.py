"""Self-training that cannot make it worse: which pseudo-labels train the next round, and which round is handed over."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import sem
from typing_extensions import TypedDict

from plugins.data import LABEL_VALUES, read_grid, read_label, read_probabilities
from plugins.errors import InputError
from plugins.evaluation.labels import LABEL_ENDING, labels_in
from plugins.files import whole_file, write_json
from plugins.progress import Progress
from plugins.state import StrPath, read_state
from plugins.workflow.records import REMAKE
from plugins.workflow.scoring import (
    PROBABILITIES_ENDING,
    STRUCTURES,
    Case,
    Rules,
    Voxels,
    cases_of,
    mean_rows,
    read_case,
)

IGNORE = 3
OF_VOXELS = ("min_vote", "min_confidence", "near_mm")
"""Thresholds that are not used with ``whole_scans``."""
GATE, SCORE, ACCEPTED = "gate.json", "score.json", "accepted.json"


class Decision(TypedDict):
    """``accepted.json``, as far as others read it."""

    model: str
    sentence: str


def decisions_in(files: Mapping[str, StrPath]) -> dict[str, str]:
    """Round to the sentence of its ``accepted.json``."""
    return {name: read_state(file, Decision, REMAKE)["sentence"] for name, file in files.items()}


class Verdict(TypedDict):
    """One scan of ``gate.json``, as far as others read it."""

    case: str
    kept: bool
    weight: float


class Gate(TypedDict):
    """``gate.json``, as far as others read it."""

    cases: list[Verdict]


@dataclass(frozen=True)
class Thresholds:
    """From when on a pseudo-label is trusted.

    Attributes:
        min_agreement: Dice of the members (or, with fewer than two, mean probability) below which a structure is
            doubtful: all its voxels are ignored.
        min_plausibility: of what was chosen, below which a scan is left out.
        strong_agreement: of both structures, from which a scan weighs 1.
        consensus_weight: of the other scans, above 0.
        min_vote: share of members that must see a voxel as the ensemble does.
        min_confidence: probability that the ensemble must give a voxel's label, near the structures.
        near_mm: how near.
        keep_share: of the scans, the best by score, that is kept whatever the thresholds above say.
        top_share: of the voxels of each structure in all scans that are kept, the most confident, above 0; the others
            are ignored. 1 keeps all. Source: Hexin et al., PAST, CrossMoDA 2022.
        whole_scans: train on the whole label map of a scan or not at all. A doubtful structure leaves its scan out, and
            :data:`OF_VOXELS` cannot be given. Where a structure is ignored but all around it is
            background, a round learns that the target has none.
    """

    min_agreement: float = 0.5
    min_plausibility: float = 0.5
    strong_agreement: float = 0.8
    consensus_weight: float = 0.5
    min_vote: float = 0.5
    min_confidence: float = 0.6
    near_mm: float = 10.0
    keep_share: float = 1 / 3
    top_share: float = 1.0
    whole_scans: bool = False

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Thresholds:
        """Those of ``settings``, the others by default.

        Raises:
            InputError: for a setting that does not exist or is out of range.
        """
        try:
            found = cls(**settings)
            numbers = [name for name in settings if name != "whole_scans"]
            words = [
                name
                for name in numbers
                if isinstance(settings[name], bool) or not isinstance(settings[name], int | float)
            ]
            if words:
                raise ValueError(f"{words[0]} is no number")
            shares = {name: value for name, value in asdict(found).items() if name != "near_mm"}
            above_0 = ("top_share", "consensus_weight")
            odd = [name for name, value in shares.items() if not 0 <= value <= 1 or (value == 0 and name in above_0)]
            if not isinstance(found.whole_scans, bool):
                raise ValueError("whole_scans must be true or false")
            if odd:
                range_of = "above 0 and at most 1" if odd[0] in above_0 else "from 0 to 1"
                raise ValueError(f"{odd[0]} must be {range_of}")
            if not found.near_mm >= 0:
                raise ValueError("near_mm must be 0 or more")
            unused = [name for name in OF_VOXELS if found.whole_scans and name in settings]
            if unused:
                raise ValueError(f"whole_scans is true, so {', '.join(unused)} would have no effect")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"gate, the thresholds of the pseudo-labels, is {settings!r} ({error}). Correct it, or set it to null."
            ) from error
        return found


def score_model(
    target: str,
    ensemble_dir: str,
    member_dirs: Sequence[str],
    statistics: str,
    output_dir: str,
    anatomy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a model by its label maps of unlabelled scans, and write ``score.json``.

    Args:
        target: datalist of the scans.
        ensemble_dir: holds ``<case>_Label.nii.gz``, and ``<case>_Probabilities.nii.gz`` where they were saved.
        member_dirs: folders of the label maps of single folds or configurations; may be empty.
        statistics: datalist of the source scans with labels, or a file of :class:`SourceStatistics`.
        output_dir: where the file goes.
        anatomy: see :meth:`plugins.workflow.scoring.Rules.read`.

    Returns:
        The content of the file: ``mean`` as :func:`plugins.workflow.scoring.mean_rows` gives it, ``cases`` as
        :func:`plugins.workflow.scoring.read_case` does, and ``statistics``.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    rules, cases, rows = Rules.read(statistics, anatomy), cases_of(target), []
    with Progress(total=len(cases), description="scoring", folder=output_dir) as progress:
        for case in cases:
            rows.append(read_case(case, ensemble_dir, member_dirs, rules).row)
            progress.advance()
    content = {"mean": mean_rows(rows), "cases": rows, "statistics": rules.statistics.to_json()}
    write_json(Path(output_dir, SCORE), content)
    return content


def gate_pseudo_labels(
    target: str,
    ensemble_dir: str,
    member_dirs: Sequence[str],
    statistics: str,
    output_dir: str,
    anatomy: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the pseudo-labels that may be trained on, and ``gate.json``, which says what was done and why.

    In a label map ``<case>_Label.nii.gz``, 3 is to be ignored: parts that cannot be the structure, voxels that too few
    members see alike or that the ensemble is unsure of, and structures that the members do not agree on. A scan is left
    out if what was chosen is implausible, or if no structure is sure; but the best third of the scans stays. With
    ``whole_scans`` a scan is also left out if one structure is not sure, and nothing of the others is ignored but parts
    that cannot be the structure. With a ``top_share`` the less confident voxels of all that is left are ignored too.

    Args:
        target: as in :func:`score_model`, and so the next four.
        ensemble_dir: see there.
        member_dirs: see there.
        statistics: see there.
        output_dir: where the files go.
        anatomy: see there.
        thresholds: those of :class:`Thresholds` that differ from the defaults.

    Returns:
        The content of ``gate.json``: that of ``score.json``, with ``thresholds``, and for each case also ``kept``,
        ``weight``, ``score`` (by which the best are found), ``ignored_voxels`` and further ``reasons``;
        ``ensemble_dir`` is relative to ``output_dir``. With a ``top_share`` also ``top``: of each structure ``voxels``
        that there were, ``kept``, and the ``lowest_probability`` among these.

    Raises:
        InputError: if a file is missing or cannot be read, if all label maps are empty, or if there is a ``top_share``
            but no probability.
    """
    limits, rules, cases = Thresholds.of(thresholds or {}), Rules.read(statistics, anatomy), cases_of(target)
    rows, spare = [], set()
    with Progress(total=len(cases), description="gate", folder=output_dir) as progress:
        for name in cases:
            case = read_case(name, ensemble_dir, member_dirs, rules)
            row = {**case.row, **_verdict(case.row, limits)}
            labels = _gated(case, _doubtful(row, limits), limits)
            if row["kept"] and not _holds(labels):
                row |= {"kept": False, "reasons": [*row["reasons"], "no voxel is sure"]}
            if not row["kept"]:
                labels = _gated(case, [], limits)
                if _holds(labels):
                    spare.add(name)
            row["ignored_voxels"] = int(np.count_nonzero(labels == IGNORE))
            rows.append(row)
            if row["kept"]:
                _save(labels, Path(ensemble_dir, name + LABEL_ENDING), output_dir)
            progress.advance()
    best = sorted((row for row in rows if row["kept"] or row["case"] in spare), key=lambda row: -row["score"])
    if not best:
        raise InputError(f"{ensemble_dir}: no label map has a structure that is sure. Train longer before this round.")
    for row in best[: math.ceil(limits.keep_share * len(rows))]:
        if not row["kept"]:
            case = read_case(row["case"], ensemble_dir, member_dirs, rules)
            row |= {"kept": True, "reasons": [*row["reasons"], "kept all the same, as one of the best"]}
            _save(_gated(case, [], limits), Path(ensemble_dir, row["case"] + LABEL_ENDING), output_dir)
    if not any(row["kept"] for row in rows):
        raise InputError(
            f"{ensemble_dir}: the gate keeps no scan. Raise keep_share, or train longer before this round."
        )
    top = {} if limits.top_share == 1 else {"top": _ignore_unsure(rows, ensemble_dir, output_dir, limits.top_share)}
    content = {
        "mean": mean_rows(rows),
        "kept": sum(row["kept"] for row in rows),
        "cases": rows,
        "thresholds": asdict(limits),
        "statistics": rules.statistics.to_json(),
        "ensemble_dir": os.path.relpath(ensemble_dir, output_dir),
        **top,
    }
    write_json(Path(output_dir, GATE), content)
    return content


def _certainty(row: Mapping[str, Any]) -> dict[str, float]:
    """Agreement of the members, or else mean probability, of the structures where one of them is known."""
    known = {name: row["agreement"][name] for name in STRUCTURES}
    known = {name: row["confidence"][name] if value is None else value for name, value in known.items()}
    return {name: value for name, value in known.items() if value is not None}


def _doubtful(row: Mapping[str, Any], limits: Thresholds) -> list[str]:
    return [name for name, value in _certainty(row).items() if value < limits.min_agreement]


def _verdict(row: Mapping[str, Any], limits: Thresholds) -> dict[str, Any]:
    certainty, doubtful, reasons = _certainty(row), _doubtful(row, limits), list(row["reasons"])
    reasons += [f"agreement on the {name} is {certainty[name]:.2f}" for name in doubtful]
    found = [name for name, volume in row["volumes_mm3"].items() if volume > 0]
    sure = [name for name in found if name not in doubtful]
    strong = len(certainty) == len(STRUCTURES) and min(certainty.values()) >= limits.strong_agreement
    kept = bool(sure) and row["plausibility_chosen"] >= limits.min_plausibility
    kept = kept and not (limits.whole_scans and doubtful)
    return {
        "kept": kept,
        "weight": 1.0 if kept and strong else limits.consensus_weight,
        "score": row["plausibility_chosen"] * (float(np.mean([*certainty.values()])) if certainty else 1.0),
        "reasons": reasons,
    }


def _gated(case: Case, doubtful: Sequence[str], limits: Thresholds) -> NDArray[np.uint8]:
    """What was chosen, with 3 where it is not to be learnt from."""
    chosen, probabilities = case.choice.labels, case.probabilities
    ignore = (case.labels != 0) & (chosen == 0)
    if case.members and not limits.whole_scans:
        votes = np.mean([member == chosen for member in case.members], axis=0)
        ignore |= votes < limits.min_vote
    if probabilities is not None:
        ignore |= (probabilities.argmax(0) != 0) & (chosen == 0)
        own = np.take_along_axis(probabilities, chosen[None].astype(np.intp), axis=0)[0]
        outside = chosen == 0
        if not (outside.all() or limits.whole_scans):
            near = distance_transform_edt(outside, sampling=voxel_sizes(case.affine)) <= limits.near_mm
            ignore |= near & ~(own >= limits.min_confidence)
    for name in doubtful:
        for labels in (chosen, *case.members):
            ignore |= labels == STRUCTURES[name]
    return np.where(ignore, IGNORE, chosen).astype(np.uint8)


def _holds(labels: NDArray[np.uint8]) -> bool:
    return bool(np.isin(labels, [*STRUCTURES.values()]).any())


def _save(labels: NDArray[np.uint8], source: Path, output_dir: str) -> None:
    with whole_file(Path(output_dir, source.name)) as part:
        nib.save(read_grid(source).image(labels, np.uint8), part)


def _ignore_unsure(
    rows: Sequence[dict[str, Any]], ensemble_dir: str, output_dir: str, share: float
) -> dict[str, dict[str, Any]]:
    """Keep the most confident share of the voxels of each structure over all scans that are kept, equal ones alike."""
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in STRUCTURES}
    kept_rows = [row for row in rows if row["kept"]]
    for row in kept_rows:
        labels, probabilities = _confident(row["case"], ensemble_dir, output_dir)
        for name, value in STRUCTURES.items():
            found[name].append(probabilities[value][labels == value])
    told = {name: _top(np.concatenate(each), share) for name, each in found.items()}
    for row in kept_rows:
        labels, probabilities = _confident(row["case"], ensemble_dir, output_dir)
        reasons = []
        for name, value in STRUCTURES.items():
            unsure = (labels == value) & (probabilities[value] < told[name]["lowest_probability"])
            labels = np.where(unsure, IGNORE, labels).astype(np.uint8)
            if count := int(np.count_nonzero(unsure)):
                reasons.append(f"{count} voxels of the {name} are not among the most confident")
        kept, file = _holds(labels), Path(output_dir, row["case"] + LABEL_ENDING)
        row |= {"kept": kept, "reasons": [*row["reasons"], *reasons]}
        row["ignored_voxels"] = int(np.count_nonzero(labels == IGNORE))
        if kept:
            _save(labels, file, output_dir)
        else:
            file.unlink()
    return told


def _confident(case: str, ensemble_dir: str, output_dir: str) -> tuple[Voxels, Voxels]:
    """A gated label map, and the probabilities of the ensemble that it was made from."""
    drawn = read_label(Path(output_dir, case + LABEL_ENDING), (*LABEL_VALUES, IGNORE))
    file = Path(ensemble_dir, case + PROBABILITIES_ENDING)
    if not file.is_file():
        raise InputError(f"{file} is missing, but top_share needs it. Predict with save_probabilities.")
    return drawn.voxels, read_probabilities(file, drawn)


def _top(confidence: NDArray[np.float32], share: float) -> dict[str, Any]:
    """Where the most confident share of voxels ends."""
    if not confidence.size:
        return {"voxels": 0, "kept": 0, "lowest_probability": 0.0}
    lowest = np.sort(confidence)[-max(1, round(share * confidence.size))]
    kept = int(np.count_nonzero(confidence >= lowest))
    return {"voxels": confidence.size, "kept": kept, "lowest_probability": float(lowest)}


def accept_round(
    before: str,
    after: str,
    output_dir: str,
    before_model: str = "before",
    after_model: str = "after",
    tolerance: float = 0.01,
    noise_tolerance: float = 0.05,
) -> dict[str, Any]:
    """Decide whether a round's model replaces the one before it, and write ``accepted.json``.

    It does if neither the agreement on a structure nor the plausibility falls, as means over the scans that both have.
    A fall counts if it exceeds ``noise_tolerance``, or ``tolerance`` and twice its standard error over the scans.
    No label is looked at, so this is a guard against models that come apart, not a proof that one is better.

    Args:
        before: ``score.json`` or ``gate.json`` of the model so far, or the ``accepted.json`` of the round before.
        after: ``score.json`` of the round's model.
        output_dir: where the file goes.
        before_model: name of the model so far; an ``accepted.json`` brings its own.
        after_model: name of the round's model.
        tolerance: by which a mean may fall, however alike the scans are.
        noise_tolerance: by which it may fall where the scans differ so much that it may be chance.

    Returns:
        The content of the file: ``accepted``, ``model`` (name of the one to hand over), ``sentence``, ``measures``
        (``before`` and ``after``), ``allowed`` (fall of each), and ``mean`` and ``cases`` of the model to hand over.

    Raises:
        InputError: if a file is none of these, or they have no scan in common.
    """
    old, new = (read_state(file, dict[str, Any], REMAKE) for file in (before, after))
    try:
        earlier, later = ({str(row["case"]): row for row in content["cases"]} for content in (old, new))
        common = [case for case in later if case in earlier]
        means = [mean_rows([rows[case] for case in common]) for rows in (earlier, later)]
    except (KeyError, TypeError) as error:
        raise InputError(f"{before} or {after} is no score of a model ({error}). Give {SCORE}.") from error
    if not common:
        raise InputError(f"{before} and {after} have no scan in common. Score both on the same scans.")
    errors = _standard_errors([(earlier[case], later[case]) for case in common])
    measures = {name: [_measures(mean)[name] for mean in means] for name in _measures(means[0])}
    known = {name: pair for name, pair in measures.items() if None not in pair}
    allowed = {name: min(max(2 * errors[name], tolerance), max(noise_tolerance, tolerance)) for name in known}
    fallen = [name for name, (first, second) in known.items() if second < first - allowed[name]]
    accepted, model_before = not fallen, str(old.get("model", before_model))
    told = {name: f"{name} {first:.3f} to {second:.3f}" for name, (first, second) in known.items()}
    model = after_model if accepted else model_before
    why = "nothing falls" if accepted else f"falls: {', '.join(told[name] for name in fallen)}"
    rest = [text for name, text in told.items() if name not in fallen]
    aside = f" ({', '.join(rest)})" if rest else ""
    content = {
        "accepted": accepted,
        "model": model,
        "sentence": f"{'accepted' if accepted else 'refused'}, {why}{aside}; handed over: {model}",
        "measures": {name: {"before": first, "after": second} for name, (first, second) in measures.items()},
        "allowed": allowed,
        "mean": (new if accepted else old)["mean"],
        "cases": (new if accepted else old)["cases"],
    }
    write_json(Path(output_dir, ACCEPTED), content)
    return content


def _measures(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a round is judged by, of a scan or as means over scans."""
    agreement = {f"agreement on the {name}": row["agreement"][name] for name in STRUCTURES}
    return {**agreement, "plausibility": row["plausibility"]}


def _standard_errors(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> dict[str, float]:
    """Of the mean difference of each measure, over the scans where both models have it; 0 for fewer than two."""
    measured = [(_measures(a), _measures(b)) for a, b in pairs]
    changes = {
        name: [b[name] - a[name] for a, b in measured if None not in (a[name], b[name])] for name in measured[0][0]
    }
    return {name: float(sem(each)) if len(each) > 1 else 0.0 for name, each in changes.items()}


def gate_accepted(
    models: Mapping[str, Mapping[str, Any]],
    accepted: str | None,
    output_dir: str,
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """:func:`gate_pseudo_labels` by the model that has been accepted so far.

    Args:
        models: name of a round to ``target``, ``ensemble_dir``, ``member_dirs`` and ``statistics`` of its model.
        accepted: ``accepted.json`` that names the round; ``None`` if there is only one.
        output_dir: where the files go.
        thresholds: see :class:`Thresholds`.

    Returns:
        The content of ``gate.json``.
    """
    name = next(iter(models)) if accepted is None else read_state(accepted, Decision, REMAKE)["model"]
    return gate_pseudo_labels(**models[name], output_dir=output_dir, thresholds=thresholds)


def write_regions(pseudo_labels: str, output_dir: str) -> None:
    """Write pseudo-labels as label maps of a translator's identity branch: voxels to be ignored are others there.

    Args:
        pseudo_labels: folder of the ``<case>_Label.nii.gz`` that a round trains on.
        output_dir: where the label maps of the same names go.

    Raises:
        InputError: if a label map cannot be read.
    """
    for file in labels_in(pseudo_labels).values():
        drawn = read_label(file, (*LABEL_VALUES, IGNORE)).voxels
        _save(np.where(drawn == IGNORE, 0, drawn).astype(np.uint8), Path(file), output_dir)
