"""MONAI Deploy: VS and cochleae on the hrT2 series of DICOM studies, as NIfTI label maps and DICOM Segmentations.

python deploy_app.py -i path/to/studies -o path/to/results -m path/to/vs_cochlea_seg

The model is the folder of an exported bundle. A series is taken if its description names one of ``SEQUENCES``.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, Fragment, Operator, OperatorSpec
from monai.deploy.operators import DICOMDataLoaderOperator, DICOMSeriesSelectorOperator

SEQUENCES = r"^(?!.*FLAIR).*((?<![A-Z0-9])T2|CISS|FIESTA|DRIVE)"  # anywhere in the description, in capitals or not
RULES = {"selections": [{"name": "hrT2", "conditions": {"Modality": "MR", "SeriesDescription": SEQUENCES}}]}


class SegmentSeries(Operator):
    """Runs the inference of the bundle on all series that were selected."""

    def __init__(self, fragment: Fragment, bundle: Path, output_dir: Path, **settings: str):
        self._bundle, self._output_dir = bundle, output_dir
        super().__init__(fragment, **settings)

    def setup(self, spec: OperatorSpec) -> None:
        """Take what DICOMSeriesSelectorOperator gives."""
        spec.input("studies")

    def compute(self, op_input, op_output, context) -> None:
        """Link the slices of each series into a folder of its own, and segment these folders."""
        studies = op_input.receive("studies")
        with TemporaryDirectory() as folder:
            scans = []
            for selected in (each for study in studies for each in study.selected_series):
                case = selected.series.SeriesInstanceUID
                image = Path(folder, f"{case}_hrT2")
                image.mkdir()
                for number, instance in enumerate(selected.series.get_sop_instances()):
                    file = Path(instance.get_native_sop_instance().filename).absolute()
                    (image / f"{number}.dcm").symlink_to(file)
                scans.append({"case": case, "image": str(image)})
            if not scans:
                raise SystemExit("error: no series is an hrT2. Correct SEQUENCES, or choose other studies.")
            datalist = Path(folder, "datalist.json")
            datalist.write_text(json.dumps({"training": scans}))
            command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--bundle_root", "."]
            command += ["--config_file", "configs/inference.json", "--datalist", str(datalist)]
            done = subprocess.run([*command, "--output_dir", str(self._output_dir)], cwd=self._bundle)
            if done.returncode:
                raise SystemExit(f"error: not every series was segmented. What was is in {self._output_dir}.")


class SegmentVsAndCochlea(Application):
    """Studies, their hrT2 series, label maps."""

    def compose(self) -> None:
        """Connect the operators."""
        place = Application.init_app_context(self.argv)
        loader = DICOMDataLoaderOperator(
            self, CountCondition(self, 1), input_folder=Path(place.input_path), name="load"
        )
        selector = DICOMSeriesSelectorOperator(self, rules=json.dumps(RULES), all_matched=True, name="select")
        bundle, output_dir = (Path(path).absolute() for path in (place.model_path, place.output_path))
        segment = SegmentSeries(self, bundle, output_dir, name="segment")
        self.add_flow(loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, segment, {("study_selected_series_list", "studies")})


if __name__ == "__main__":
    SegmentVsAndCochlea().run()
