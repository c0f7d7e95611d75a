import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor

from plugins.errors import InputError
from plugins.evaluation import SliceSegmenter, TranslationQuality, evaluate_translations, slice_jump, structure_contrast
from plugins.evaluation.translation import features_of, frechet_distance, slice_features
from plugins.files import read_json

SPACING = (0.5, 0.7, 1.5)
ANYTHING = {"vs": (-9, 9), "cochlea": (-9, 9)}


def scene(seed=0, vs=0.2, cochlea=0.9):
    """A volume in [0, 1] and its label map, every axis of another length."""
    random = np.random.default_rng(seed)
    volume = (0.5 + 0.02 * random.standard_normal((24, 20, 6))).astype(np.float32)
    label = np.zeros(volume.shape, dtype=np.uint8)
    label[4:9, 5:9, 1:4], label[15:17, 12:14, 2:4] = 1, 2
    volume[label == 1], volume[label == 2] = vs, cochlea
    return volume, label


def item(volume, label, key="pred"):
    affine = np.diag([*SPACING, 1.0])
    made = {key: MetaTensor(torch.from_numpy(volume * 2 - 1)[None], affine=affine)}
    return made | (
        {"label": MetaTensor(torch.from_numpy(label)[None].float(), affine=affine)} if label is not None else {}
    )


def quality(outputs, reals, **settings):
    engine = Engine(lambda _, batch: [batch])
    TranslationQuality(reals, **settings).attach(engine, "quality")
    engine.run(outputs)
    return engine.state.metrics


class TestContrast:
    def test_it_is_the_difference_to_the_shell_in_mm(self):
        volume, label = scene()
        for value, name in ((1, "vs"), (2, "cochlea")):
            places = np.argwhere(label == value) * SPACING
            shell = [
                volume[tuple(at)]
                for at in np.argwhere(label == 0)
                if np.sqrt(((places - at * SPACING) ** 2).sum(1)).min() <= 3.0
            ]
            expected = volume[label == value].mean() - np.mean(shell)
            assert structure_contrast(volume, label, SPACING)[name] == pytest.approx(expected, abs=1e-6)

    def test_a_missing_structure_and_missing_surroundings_have_none(self):
        volume, label = scene()
        assert structure_contrast(volume, np.zeros_like(label), SPACING) == {"vs": None, "cochlea": None}
        assert structure_contrast(volume, np.ones_like(label), SPACING)["vs"] is None


class TestSliceJump:
    def test_air_does_not_count(self):
        volume = np.zeros((4, 5, 3))
        volume[1, 1] = [0.2, 0.5, 0.5]
        assert slice_jump(volume) == pytest.approx((0.3 + 0.0) / 2)

    def test_one_slice_and_air_have_none(self):
        assert slice_jump(np.ones((4, 5, 1))) is None
        assert slice_jump(np.zeros((4, 5, 3))) is None


class TestFeatures:
    def test_they_are_statistics_of_brightness_and_edges_at_three_scales(self):
        image = torch.rand(1, 1, 16, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        features = slice_features(image)[0]
        values = image.numpy()[0, 0]
        assert features.shape == (30,)
        assert features[0].item() == pytest.approx(values.mean())
        assert features[1].item() == pytest.approx(values.std())
        np.testing.assert_allclose(features[2:8], np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)))
        edges = np.hypot(np.diff(values, axis=0)[:, :-1], np.diff(values, axis=1)[:-1])
        assert features[8].item() == pytest.approx(edges.mean())
        halved = values.reshape(8, 2, 12, 2).mean((1, 3))
        assert features[11].item() == pytest.approx(halved.std())

    def test_distance_is_zero_to_itself_and_grows_with_a_shift(self):
        real = features_of(np.random.default_rng(0).random((16, 16, 60)))
        distances = [frechet_distance(real + shift * real.std(0, correction=0), real) for shift in (0.0, 0.5, 1.0)]
        assert distances[0] == pytest.approx(0, abs=1e-3)
        assert distances[1] == pytest.approx(30 * 0.25, rel=0.01)
        assert distances[2] == pytest.approx(30 * 1.0, rel=0.01)


class TestTranslationQuality:
    def test_the_real_scans_themselves_are_perfect(self):
        scans = [scene(seed) for seed in (0, 1)]
        metrics = quality([item(*scan) for scan in scans], [item(*scan, key="image") for scan in scans])
        assert metrics["statistics_distance"] == pytest.approx(0, abs=1e-2)
        assert metrics["slice_jump"] == pytest.approx(1)
        assert metrics["vs_contrast_error"] == pytest.approx(0, abs=1e-6)
        assert metrics["cochlea_contrast_error"] == pytest.approx(0, abs=1e-6)
        assert metrics["quality"] == pytest.approx(0, abs=1e-6)

    def test_contrast_is_a_share_of_the_inner_99_percent_and_its_error_the_way_to_the_target(self):
        volume, label = scene(vs=0.9, cochlea=0.6)
        shares = {}
        low, high = np.percentile(volume.astype(np.float64), (0.5, 99.5))
        for name, value in structure_contrast(volume, label, SPACING).items():
            shares[name] = value / (high - low)
        real = item(scene()[0], None, key="image")
        wide = {"vs": [-9, shares["vs"] - 0.25], "cochlea": [shares["cochlea"] + 0.5, 9]}
        metrics = quality([item(volume, label)], [real], target_contrast=wide)
        assert metrics["vs_contrast"] == pytest.approx(shares["vs"], abs=1e-4)
        assert metrics["vs_contrast_error"] == pytest.approx(0.25, abs=1e-4)
        assert metrics["cochlea_contrast_error"] == pytest.approx(0.5, abs=1e-4)
        assert metrics["quality"] == pytest.approx(-0.375, abs=1e-4)
        inside = quality([item(volume, label)], [real], target_contrast={"vs": [-9, 9], "cochlea": [-9, 9]})
        assert inside["quality"] == 0

    def test_errors_of_volumes_do_not_cancel(self):
        volumes = [item(*scene(vs=value)) for value in (0.3, 0.7)]
        real = item(scene()[0], None, key="image")
        metrics = quality(volumes, [real], target_contrast={"vs": [0, 0], "cochlea": [-9, 9]})
        assert abs(metrics["vs_contrast"]) < 0.1 < metrics["vs_contrast_error"]

    def test_label_maps_of_real_scans_take_the_place_of_the_knob(self):
        metrics = quality([item(*scene(vs=0.9))], [item(*scene(), key="image")], target_contrast=ANYTHING)
        true, made = (quality([item(*scene(vs=vs))], [item(*scene(), key="image")]) for vs in (0.2, 0.9))
        assert metrics["vs_contrast_error"] == pytest.approx(made["vs_contrast"] - true["vs_contrast"], abs=1e-4)
        assert metrics["vs_contrast_error"] > 0.5

    def test_without_any_structure_the_score_is_the_worst(self):
        volume, label = scene()
        metrics = quality([item(volume, 0 * label)], [item(volume, None, key="image")])
        assert metrics["quality"] == -1
        assert "vs_contrast" not in metrics

    def test_distances_are_those_to_each_site_beside_those_between_halves_of_its_scans(self):
        scans = {"ldn": [scene(seed)[0] for seed in (0, 1, 2)], "etz": [scene(3)[0] * 0.5]}
        reals = [
            item(volume, None, key="image") | {"site": site} for site, volumes in scans.items() for volume in volumes
        ]
        translated = scene(4, vs=0.9)
        metrics = quality([item(*translated)], reals)
        features = {site: [features_of(each) for each in volumes] for site, volumes in scans.items()}
        everything = [each for site in features.values() for each in site]
        own, ldn, etz = features_of(translated[0]), features["ldn"], features["etz"][0]
        expected = {
            "statistics_distance": (own, torch.cat(everything)),
            "statistics_distance_floor": (torch.cat(everything[::2]), torch.cat(everything[1::2])),
            "statistics_distance_ldn": (own, torch.cat(ldn)),
            "statistics_distance_ldn_floor": (torch.cat([ldn[0], ldn[2]]), ldn[1]),
            "statistics_distance_etz": (own, etz),
            "statistics_distance_etz_floor": (etz[::2], etz[1::2]),
        }
        assert {name for name in metrics if name.startswith("statistics")} == set(expected)
        for name, pair in expected.items():
            assert metrics[name] == pytest.approx(frechet_distance(*pair), rel=1e-2), name

    @pytest.mark.parametrize("limits", [{"vs": [0, 1]}, {"vs": [1, 0], "cochlea": [0, 1]}, {"vs": [0], "cochlea": [0]}])
    def test_a_target_that_is_no_range_is_refused(self, limits):
        with pytest.raises(InputError, match="lowest and the highest contrast"):
            TranslationQuality([], target_contrast=limits)

    def test_with_a_segmenter_the_score_is_the_mean_dice(self):
        volume, label = scene()
        half = label.copy()
        half[label == 2] = 0
        metrics = quality([item(volume, label)], [item(volume, None, key="image")], segmenter=lambda _: half)
        assert (metrics["vs_dice"], metrics["cochlea_dice"]) == (1.0, 0.0)
        assert metrics["quality"] == metrics["mean_dice"] == 0.5

    def test_every_evaluation_begins_anew(self):
        reals = [item(*scene(), key="image")]
        engine = Engine(lambda _, batch: [batch])
        TranslationQuality(reals).attach(engine, "quality")
        engine.run([item(*scene(vs=0.9))])
        engine.run([item(*scene())])
        assert engine.state.metrics["vs_contrast_error"] == pytest.approx(0, abs=1e-6)

    def test_nothing_translated_is_an_error(self):
        with pytest.raises(NotComputableError):
            TranslationQuality([item(*scene(), key="image")]).compute()


def test_a_segmenter_of_slices_labels_a_volume(tmp_path):
    class Threshold(torch.nn.Module):
        def forward(self, slices: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.zeros_like(slices), -slices, slices - 0.5], dim=1)

    torch.jit.script(Threshold()).save(str(tmp_path / "segmenter.ts"))
    volume, label = scene(cochlea=1.0, vs=0.0)
    volume[label == 0] = 0.5
    np.testing.assert_array_equal(SliceSegmenter(str(tmp_path / "segmenter.ts"), batch_size=4)(volume), label)


class TestEvaluateTranslations:
    @staticmethod
    def write(folder, name, volume):
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.diag([*SPACING, 1.0])), folder / name)
        return str(folder / name)

    def data(self, tmp_path):
        volume, label = scene()
        self.write(tmp_path / "translated", "a.nii.gz", volume)
        self.write(tmp_path / "true", "a_hrT2.nii.gz", 100 + 1000 * scene(vs=0.4)[0])
        return [{"case": "a", "label": self.write(tmp_path, "a_Label.nii.gz", label)}, {"case": "without a label"}]

    def test_contrast_errors_are_those_of_the_scaled_true_scan(self, tmp_path):
        content = evaluate_translations(
            self.data(tmp_path), tmp_path / "translated", tmp_path / "metrics.json", truth_dir=tmp_path / "true"
        )
        true = scene(vs=0.4)[0]
        low, high = np.percentile(true, (0.1, 99.9))
        expected = structure_contrast(np.clip((true - low) / (high - low), 0, 1), scene()[1], SPACING)
        assert content["mean"]["vs_contrast"] == pytest.approx(-0.3, abs=0.01)
        error = abs(content["mean"]["vs_contrast"] - expected["vs"])
        assert content["mean"]["vs_contrast_error"] == pytest.approx(error, abs=1e-3)
        assert read_json(tmp_path / "metrics.json") == content

    def test_a_segmenter_gives_target_preservation(self, tmp_path):
        label = scene()[1][::-1, ::-1]  # the file is RAS, the segmenter sees LPS
        content = evaluate_translations(
            self.data(tmp_path), tmp_path / "translated", tmp_path / "metrics.json", segmenter=lambda _: label
        )
        assert content["cases"]["a"]["mean_dice"] == 1.0
        assert "vs_contrast_error" not in content["mean"]

    def test_it_does_not_matter_how_scans_are_stored(self, tmp_path):
        data = self.data(tmp_path)
        metrics = tmp_path / "metrics.json"
        expected = evaluate_translations(data, tmp_path / "translated", metrics, truth_dir=tmp_path / "true")
        to = nib.orientations.axcodes2ornt("SRP")
        for name in ("a_Label.nii.gz", "translated/a.nii.gz", "true/a_hrT2.nii.gz"):
            file = tmp_path / name
            image = nib.load(file)
            turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), to)
            nib.save(nib.Nifti1Image(*self.voxels_and_affine(image.as_reoriented(turn))), file)
        content = evaluate_translations(data, tmp_path / "translated", metrics, truth_dir=tmp_path / "true")
        assert content["mean"] == pytest.approx(expected["mean"], rel=1e-5)

    @staticmethod
    def voxels_and_affine(image):
        return np.ascontiguousarray(image.dataobj), image.affine

    def test_a_translation_that_lies_elsewhere_is_named(self, tmp_path):
        data = self.data(tmp_path)
        image = nib.load(tmp_path / "translated" / "a.nii.gz")
        moved = nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.array([[0, 0, 0, 5.0]] + [[0] * 4] * 3))
        nib.save(moved, tmp_path / "translated" / "a.nii.gz")
        with pytest.raises(InputError, match="5 mm away"):
            evaluate_translations(data, tmp_path / "translated", tmp_path / "metrics.json")

    def test_missing_and_misshapen_translations_are_named(self, tmp_path):
        data = self.data(tmp_path)
        self.write(tmp_path / "translated", "a.nii.gz", np.zeros((3, 4, 5), np.float32))
        with pytest.raises(InputError, match=r"a\.nii\.gz: has shape"):
            evaluate_translations(data, tmp_path / "translated", tmp_path / "metrics.json")
        (tmp_path / "translated" / "a.nii.gz").unlink()
        with pytest.raises(InputError, match=r"a\.nii\.gz: does not exist"):
            evaluate_translations(data, tmp_path / "translated", tmp_path / "metrics.json")

    def test_without_any_label_there_is_nothing_to_judge(self, tmp_path):
        with pytest.raises(InputError, match="no source scan has a label"):
            evaluate_translations([{"case": "a"}], tmp_path, tmp_path / "metrics.json")
