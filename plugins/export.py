"""A bundle of this repository as one that stands alone, in the shape of MONAI's Model Zoo.

python -m plugins.export bundles/tanq_translation path/to/out --ckpt_dir path/to/models

The copy holds the code that its configs name (``plugins/``), the weights and the TorchScript of a training, and
``SHA256SUMS``; beside it lies a zip that ``python -m monai.bundle download`` takes. Two exports of the same files are
the same zip, but for TorchScript and ``.pt2``, which torch never writes twice alike.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai.bundle import ConfigParser, ckpt_export
from monai.bundle.utils import merge_kv

import plugins
from plugins.config.command import COMPLETE
from plugins.config.names import SECTIONS, all_references, as_id, known_settings, refuse_unknown_ids
from plugins.config.places import INPUTS, OUTPUTS
from plugins.errors import InputError, show_input_errors_as_sentences
from plugins.files import read_json, whole_file
from plugins.finite import refuse_broken_weights
from plugins.programs import steps_of, write_programs
from plugins.runtime import VENDORED
from plugins.segmentation.model import DESCRIPTION
from plugins.state import SUM, read_tensors
from plugins.store import TRAINING, check_weights

WEIGHTS, SCRIPT, SUMS = "model.pt", "model.ts", "SHA256SUMS"
LOCATOR = ("locator.pt", "locator.pt" + SUM, "locator.json")  # of a segmentation that sees windows
LARGE_BYTES = 25 * 2**20  # what the zoo keeps in git
LEFT_OUT = ("eval", "models", "__pycache__", "runs", "mlruns")
BOOTSTRAP = {"imports": ["$import sys"], "code_path": "$sys.path.insert(1, @bundle_root)"}
TRAIN, INFERENCE, SEGMENTATION = "train.json", "inference.json", "vs_cochlea_seg"
PARTS = ("cyclegan_translation", "tanq_translation", SEGMENTATION)  # of the driver
MULTI_GPU, LOCATOR_CONFIG, LOCATOR_OVERLAYS = "multi_gpu_train.json", "locator.json", "locator_"
OF_THIS_MACHINE = INPUTS | {*OUTPUTS} | {
    "locator_dir", "source_truth_dir", "target_truth_dir", "run_name", "weights",
    "device", "devices", "executor", "num_threads", "num_workers", "initialize",
}  # fmt: skip
"""Ids that say where things lie and what computes: of no use to whoever gets an exported bundle."""
_logger = logging.getLogger(__name__)


def export(
    bundle: Path,
    output_dir: Path,
    ckpt_dir: Path | None = None,
    overlays: Sequence[str] = (),
    onnx: bool = False,
    pt2: bool = False,
    url: str | None = None,
) -> Path:
    """Write ``<output_dir>/<bundle>/`` and ``<output_dir>/<bundle>_v<version>.zip``.

    Args:
        bundle: root of a bundle of this repository.
        output_dir: receives folder and zip; an older export is replaced once the new one is complete.
        ckpt_dir: with ``model.pt`` (and, of the segmentation, ``model.json`` and the locator's files) of a training;
            ``None`` for none.
        overlays: config files of the bundle, or absolute paths of others, that the training was given after
            ``train.json``; the copy's configs take their values, but for :data:`OF_THIS_MACHINE`.
        onnx: write the networks as ONNX too, see :func:`plugins.programs.write_programs`.
        pt2: write them as programs of ``torch.export`` too.
        url: where large files will be offered: they are then listed in ``large_files.yml`` and left out.

    Returns:
        the zip.

    Raises:
        InputError: if ``bundle`` is none, if it has no such weights, if a translator's were trained with other
            settings, or if anything but an older export would be replaced.
    """
    bundle, output_dir = bundle.resolve(), output_dir.resolve()
    if not (bundle / "configs" / "metadata.json").is_file():
        raise InputError(f"{bundle} is no bundle. Give a folder that holds configs/metadata.json.")
    formats = [name for name, wanted in (("pt2", pt2), ("onnx", onnx)) if wanted]
    if formats and ckpt_dir is None:
        raise InputError(f"there is no network to write as {' and '.join(formats)}. Give its ckpt_dir too.")
    place = output_dir / bundle.name
    for source in [bundle, *([ckpt_dir.resolve()] if ckpt_dir else [])]:
        if place.resolve() in (source, *source.parents) or bundle in place.parents:
            raise InputError(f"{place} would replace or lie in {source}. Choose another output_dir.")
    if place.exists() and not (place / SUMS).is_file():
        raise InputError(f"{place} is no exported bundle, yet would be replaced. Choose another output_dir.")
    output_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{bundle.name}.", dir=output_dir) as partial:
        folder = Path(partial) / bundle.name
        _build(folder, bundle, overlays, ckpt_dir and ckpt_dir.resolve(), formats)
        large = _list_large_files(folder, url) if url else []
        _write_sums(folder)
        version = read_json(folder / "configs" / "metadata.json")["version"]
        archive = output_dir / f"{bundle.name}_v{version}.zip"
        _write_zip(folder, archive, large)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    return archive


def _build(folder: Path, bundle: Path, overlays: Sequence[str], ckpt_dir: Path | None, formats: Sequence[str]) -> None:
    _copy(bundle, folder)
    if (bundle.parent / PARTS[0]).is_dir() and bundle.name not in PARTS:
        for part in PARTS:
            _copy(bundle.parent / part, folder / "parts" / part)
    _apply_overlays(folder, overlays)
    if ckpt_dir is not None:
        _add_weights(folder, ckpt_dir)
    _describe(folder)
    if ckpt_dir is not None:
        _export_script(folder, ckpt_dir)
        write_programs(folder, formats)


def _copy(bundle: Path, folder: Path) -> None:
    """Copy a bundle with the code it needs; its configs find that code wherever they lie."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(*LEFT_OUT, ".*"))
    code = Path(plugins.__file__).parent
    shutil.copytree(code, folder / "plugins", ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (folder / "plugins" / VENDORED).write_text(f"{plugins.__version__} {_hash_of(folder / 'plugins')}\n")
    for path in sorted((folder / "configs").glob("*.json")):
        content = read_json(path)
        content = _with_bootstrap(content) if "bundle_root" in content else _requiring(content)
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def _with_bootstrap(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose components of ours come from the folder of the bundle."""
    imports = [*dict.fromkeys([*BOOTSTRAP["imports"], *config.get("imports", [])])]
    rest = {key: value for key, value in config.items() if key != "imports"}
    return {"imports": imports, "code_path": BOOTSTRAP["code_path"], **_requiring(rest)}


def _requiring(node: Any) -> Any:
    if isinstance(node, list):
        return [_requiring(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {key: _requiring(value) for key, value in node.items()}
    target = node.get("_target_")
    if isinstance(target, str) and target.startswith("plugins."):
        node = {"_target_": target, "_requires_": "@code_path", **node}
    return node


def _apply_overlays(folder: Path, overlays: Sequence[str]) -> None:
    """Write the values of overlays into the configs that have such keys, and of a driver's into its segmentation's."""
    configs = folder / "configs"
    trained = read_json(configs / TRAIN)
    for overlay in overlays:
        file = configs / overlay
        if not file.is_file():
            raise InputError(f"{file.name} is no config of {folder.name}. Name an overlay of the training.")
        if file.name in (*COMPLETE, "metadata.json"):
            raise InputError(f"{file.name} is no overlay. Name only what the training was given after {TRAIN}.")
        values = ConfigParser.load_config_file(file)
        if not file.name.startswith(LOCATOR_OVERLAYS):
            own = {*SECTIONS} | all_references(values)
            refuse_unknown_ids(trained, values, f"{file.name} is no overlay of the training: {TRAIN}", own)
        for path in sorted(configs.glob("*.json")):
            if "bundle_root" in read_json(path) and file.name.startswith(LOCATOR_OVERLAYS) == (
                path.name == LOCATOR_CONFIG
            ):
                _settle(path, values, file.name)
    part = folder / "parts" / SEGMENTATION / "configs"
    if overlays and part.is_dir():
        trained = read_json(configs / TRAIN)
        for name in trained["overlays"]:
            if (part / name).is_file():
                _settle(part / INFERENCE, ConfigParser.load_config_file(part / name), name)
        _settle(part / INFERENCE, (trained["settings"] or {}).get(SEGMENTATION, {}), "settings")


def _settle(config: Path, values: Mapping[str, Any], source: str) -> None:
    """Write those values into a config that it knows and that are as true elsewhere."""
    if source == MULTI_GPU:
        _logger.info(f"{source} says on what is trained, so it is not written into the configs")
        return
    here = [name for name in values if as_id(name).partition("::")[0] in OF_THIS_MACHINE]
    if here:
        _logger.info(f"{source}: {', '.join(here)} hold for this machine only, and are not written into {config.name}")
    content = read_json(config)
    parser = ConfigParser(content)
    for name, value in known_settings(content, {key: values[key] for key in values if key not in here}).items():
        merge_kv(parser, name, value)
    config.write_text(json.dumps(parser.get(), indent=4) + "\n", encoding="utf-8")


def _add_weights(folder: Path, ckpt_dir: Path) -> None:
    if not (ckpt_dir / WEIGHTS).is_file():
        raise InputError(f"{ckpt_dir} holds no {WEIGHTS}. Give the ckpt_dir of a finished training.")
    weights = read_tensors(ckpt_dir / WEIGHTS, "Copy it again, or train again", mmap=True)
    refuse_broken_weights(weights, str(ckpt_dir / WEIGHTS))
    _check_settings(folder, ckpt_dir / WEIGHTS)
    models = folder / "models"
    models.mkdir()
    for name in (WEIGHTS, WEIGHTS + SUM, DESCRIPTION, TRAINING, *LOCATOR):
        if (ckpt_dir / name).is_file():
            shutil.copyfile(ckpt_dir / name, models / name)


def _check_settings(folder: Path, weights: Path) -> None:
    """Refuse weights that were trained with other settings than the inference of the copy has."""
    parser = ConfigParser(read_json(folder / "configs" / "inference.json"))
    if "recorded" in parser:  # a segmentation describes itself in model.json
        parser["recorded"].pop("_requires_", None)
        cure = "Name the config files that the training was given after train.json, --overlays"
        check_weights(weights, parser.get_parsed_content("recorded"), cure)


def _export_script(folder: Path, ckpt_dir: Path) -> None:
    models = folder / "models"
    options = {
        "net_id": "network_def",
        "bundle_root": folder,
        "config_file": folder / "configs" / "inference.json",
        "meta_file": folder / "configs" / "metadata.json",
        "ckpt_file": models / WEIGHTS,
        "filepath": models / SCRIPT,
    }
    log = logging.getLogger(ckpt_export.__module__)
    level = log.level
    log.setLevel(logging.WARNING)  # else MONAI tells of files that are about to be renamed
    try:
        ckpt_export(**{name: str(value) for name, value in options.items()})
    except Exception as fault:  # of a constructor, of torch's compiler, or of the weights
        first = str(fault).partition("\n")[0].rstrip(":")
        raise InputError(
            f"{ckpt_dir / WEIGHTS}: cannot be exported as TorchScript ({type(fault).__name__}: {first}). "
            "Give weights of this bundle, and the overlays that they were trained with."
        ) from fault
    finally:
        log.setLevel(level)


def _describe(folder: Path) -> None:
    """Give the metadata the sizes of the networks that are exported, which overlays and plans decide."""
    file = folder / "configs" / "metadata.json"
    metadata = read_json(file)
    sizes = read_json(folder / "configs" / "inference.json").get("patch_size")
    if (folder / "models" / DESCRIPTION).is_file():
        sizes = [f"{step}*n" for step in max(steps_of(folder).values(), key=len)]
    if not isinstance(sizes, list):
        return
    for tensors in metadata["network_data_format"].values():
        for tensor in tensors.values():
            tensor["spatial_shape"] = sizes
    file.write_text(json.dumps(metadata, indent=4) + "\n", encoding="utf-8")


def _list_large_files(folder: Path, url: str) -> list[Path]:
    """Write ``large_files.yml`` and return the files that it lists."""
    large = [path for path in _files(folder) if path.stat().st_size > LARGE_BYTES or path.parent.name == "models"]
    lines = ["large_files:"]
    for path in large:
        name = path.relative_to(folder).as_posix()
        lines += [f"- path: {json.dumps(name)}", f"  url: {json.dumps(url.rstrip('/') + '/' + name)}"]
        lines += [f"  hash_val: {json.dumps(_sha256(path))}", '  hash_type: "sha256"']
    (folder / "large_files.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return large


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of(folder: Path) -> str:
    lines = "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder))
    return hashlib.sha256(lines.encode()).hexdigest()


def _write_sums(folder: Path) -> None:
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: Path) -> None:
    """Compare an exported bundle with its ``SHA256SUMS``.

    Raises:
        InputError: naming the first file that is missing or differs.
    """
    for line in (folder / SUMS).read_text(encoding="utf-8").splitlines():
        sha, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or _sha256(path) != sha:
            raise InputError(f"{path}: is missing or differs from SHA256SUMS. Download the bundle again.")


def _write_zip(folder: Path, archive: Path, left_out: Sequence[Path]) -> None:
    with whole_file(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as content:
        for path in _entries(folder, left_out):
            entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            content.writestr(entry, path.read_bytes())


def _entries(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    return (path for path in _files(folder) if path not in left_out)


def main() -> None:
    """Export from the command line."""
    show_input_errors_as_sentences()
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("bundle", type=Path, help="root of the bundle")
    arguments.add_argument("output_dir", type=Path, help="receives the folder and the zip")
    arguments.add_argument("--ckpt_dir", type=Path, help="model.pt of a training; none by default")
    arguments.add_argument("--overlays", nargs="*", default=[], help="config files given after train.json")
    arguments.add_argument("--onnx", action="store_true", help="write models/*.onnx too")
    arguments.add_argument("--pt2", action="store_true", help="write models/*.pt2, programs of torch.export, too")
    arguments.add_argument("--url", help="where large files will be offered; they are then left out of the zip")
    given = arguments.parse_args()
    print(export(**vars(given)))


if __name__ == "__main__":
    main()
