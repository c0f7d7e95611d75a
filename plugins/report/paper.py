"""The figures of the paper, from the runs of a study: Fig. 3 segmentations, Fig. 4 translations, Fig. 5 positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from plugins.report.facts import RECORD
from plugins.report.figures import data_uri, draw_cases, draw_points, draw_translations, write_png
from plugins.report.positions import ATTENTION, CURE, Chosen, attended, chosen_positions, numbers_of, translations_in
from plugins.report.positions import RECORD as TRAINING
from plugins.report.tables import Table, table
from plugins.state import read_state

TRANSLATED = 2
Scan = Mapping[str, Any]
Positions = Sequence[tuple["Translator", Mapping[str, Any], Chosen]]


@dataclass(frozen=True)
class Translator:
    """A trained translator of a study.

    Attributes:
        title: its method, and its view where the method has several.
        run: folder of the first run that has it.
        view: its name in the run.
        translations: folder of the translations that the run hands on: of its last round, and calibrated if they are.
    """

    title: str
    run: Path
    view: str
    translations: Path

    @property
    def training(self) -> Path:
        """Folder of the training that made them."""
        return self.translations.parent / f"{self.view}_training"

    def volume(self, scan: Scan) -> Path:
        """Its translation of a scan."""
        return self.translations / f"{scan['case']}.nii.gz"

    def numbers(self) -> dict[str, Any]:
        """``title``, ``view`` and the normalisation of encoder and decoder, ``None`` where it has no such choice."""
        network = read_state(self.training / TRAINING, dict[str, Any], CURE)["settings"]
        norms = {name: (network.get("network_def") or {}).get(name) for name in ("encoder_norm", "decoder_norm")}
        return {"title": self.title, "view": self.view, **norms}


def translators_in(
    runs: Mapping[str, Path],
    stages: Mapping[str, Collection[str]] | None = None,
    given: Mapping[str, Mapping[str, str]] | None = None,
) -> list[Translator]:
    """The translators of some runs; one that several share stands there once, under the first method that has it.

    Args:
        runs: method to the folder of its run.
        stages: method to the names of its run's stages; ``None`` takes all that lie there.
        given: method to the folders of :func:`plugins.report.positions.translations_in`.
    """
    found: dict[str, Translator] = {}
    for method, run in runs.items():
        known = None if stages is None else stages[method]
        views = translations_in(run, known, None if given is None else given[method])
        for view, folder in views.items():
            each = Translator(method if len(views) == 1 else f"{method}: {view}", run, view, folder)
            mark = read_state(each.training / RECORD, dict[str, Any], CURE)["fingerprint"]
            found.setdefault(mark, each)
    return [*found.values()]


def translators_table(translators: Sequence[Translator]) -> Table:
    """The normalisation of each translator."""
    numbers = [each.numbers() for each in translators]
    rows = [
        [each["title"], *(each[name] or "its own" for name in ("encoder_norm", "decoder_norm"))] for each in numbers
    ]
    return table("Normalisation of each translator.", ["translator", "in the encoder", "in the decoder"], rows)


def positions_of(translators: Sequence[Translator], source: Sequence[Scan]) -> Positions:
    """Each translator with a contrastive loss, its numbers, and what it chooses in the first source scan."""
    found = []
    for each in translators:
        chosen = chosen_positions(each.translations.parent, each.view, source)
        if chosen:
            found.append((each, numbers_of(chosen), chosen[0]))
    return found


def segmentations(cases: Mapping[str, str], files: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """Fig. 3: ``worst`` and ``median`` case, with the reference and each method's label map."""
    rows = [(f"{what}: {case}", files[case]["image"], files[case]["maps"]) for what, case in cases.items()]
    return draw_cases(rows) if rows else None


def translations(translators: Sequence[Translator], source: Sequence[Scan]) -> Figure | None:
    """Fig. 4: the first source scans and their translations under each normalisation."""
    rows = [(scan, found) for scan in source[:TRANSLATED] if (found := _translated(translators, scan))]
    return draw_translations(rows) if rows else None


def translation_picture(translators: Sequence[Translator], scan: Scan) -> str | None:
    """A row of Fig. 4 as a data URI."""
    found = _translated(translators, scan)
    return data_uri(draw_translations([(scan, found)])) if found else None


def positions(found: Positions) -> Figure | None:
    """Fig. 5: for each translator the positions of those layers that any of them chooses by attention."""
    return draw_points([_row(each, found) for each in found]) if found else None


def position_pictures(found: Positions) -> list[dict[str, str]]:
    """The rows of Fig. 5, each as ``view``, ``case`` and ``picture``."""
    return [
        {"view": each[0].title, "case": each[2].case, "picture": data_uri(draw_points([_row(each, found)]))}
        for each in found
    ]


def write_figures(figures: Mapping[str, Figure | None], folder: Path) -> None:
    """Write each figure as ``<name>.png``; one that is no longer there is removed."""
    for name, figure in figures.items():
        if figure is None:
            (folder / f"{name}.png").unlink(missing_ok=True)
        else:
            write_png(figure, folder / f"{name}.png")


def _translated(translators: Sequence[Translator], scan: Scan) -> dict[str, Path]:
    return {each.title: each.volume(scan) for each in translators if each.volume(scan).is_file()}


def _row(each: tuple[Translator, Mapping[str, Any], Chosen], found: Positions) -> Any:
    """The layers of a translator that choose by attention here or elsewhere, with their shares in the heads."""
    translator, numbers, chosen = each
    numbered = {title.split(",")[0] for _, _, other in found for title in other.layers if title.endswith(ATTENTION)}
    shown = attended(chosen.layers, [title for title in chosen.layers if title.split(",")[0] in numbered])
    heads = {}
    for title, places in shown.items():
        share = numbers["shares"][title]
        heads[f"{title}: {share['vs']:.1%} VS, {share['cochlea']:.1%} cochlea"] = places
    return translator.title, chosen.image, chosen.label, heads
