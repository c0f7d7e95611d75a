import os

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from plugins.data.slices import UnpairedSampler, UnpairedSlices, prepare_volumes, read_slice
from plugins.data.transforms import translation_transforms
from plugins.errors import InputError
from plugins.files import read_json

SIZE = (8, 6)
LPS = np.diag([-1.0, -1, 1, 1])


def write_scan(folder, case, n_slices, label=False):
    """A scan whose values tell the case's slices apart; its label holds a structure in slice 1 only."""
    image = np.random.default_rng(len(case) + n_slices).random((*SIZE, n_slices), np.float32)
    nib.save(nib.Nifti1Image(image, LPS), folder / f"{case}.nii.gz")
    item = {"case": case, "image": str(folder / f"{case}.nii.gz")}
    if label:
        labels = np.zeros(image.shape, np.uint8)
        labels[2, 3, 1] = 2
        nib.save(nib.Nifti1Image(labels, LPS), folder / f"{case}_Label.nii.gz")
        item["label"] = str(folder / f"{case}_Label.nii.gz")
    return item


def transform(percentiles=(0, 100)):
    return translation_transforms(None, SIZE, SIZE, percentiles)


@pytest.fixture
def data(tmp_path):
    source = [write_scan(tmp_path, "s1", 3, label=True), write_scan(tmp_path, "s2", 4, label=True)]
    return {"source": source, "target": [write_scan(tmp_path, "t1", 2), write_scan(tmp_path, "t2", 7)]}


@pytest.fixture
def dataset(data, tmp_path):
    return UnpairedSlices(data, transform(), tmp_path / "cache", augment=False)


def test_slices_are_those_of_the_transformed_volumes(data, dataset):
    expected = torch.cat([transform()(item)["image"] for item in data["source"]], dim=-1)
    labels = torch.cat([transform()(item)["label"] for item in data["source"]], dim=-1)
    reals = torch.cat([transform()(item)["image"] for item in data["target"]], dim=-1)
    assert len(dataset) == 7
    for source, target in zip([0, 1, 2, 3, 4, 5, 6, 0, 1], range(9), strict=True):
        item = dataset[source, target, 0]
        assert torch.equal(item["image"], expected[..., source].as_tensor())
        assert torch.equal(item["label"], labels[..., source].as_tensor())
        assert torch.equal(item["reals"], reals[..., target].as_tensor())
        assert torch.equal(item["reals_label"], torch.zeros(1, *SIZE))
        assert {value.dtype for value in item.values() if isinstance(value, torch.Tensor)} == {torch.float32}


def test_a_pseudo_label_of_a_target_is_its_label_map(data, tmp_path):
    data["target"][1] = {**write_scan(tmp_path, "t2", 7, label=True), "pseudo": True}
    dataset = UnpairedSlices(data, transform(), tmp_path / "cache", augment=False)
    assert dataset.target_foreground.tolist() == [False] * 3 + [True] + [False] * 5
    assert dataset[0, 3, 0]["reals_label"][0, 2, 3] == 2
    assert dataset[0, 0, 0]["reals_label"].sum() == 0


def test_foreground_tells_the_slices_with_a_structure(dataset):
    assert dataset.source_foreground.tolist() == [False, True, False, False, True, False, False]
    assert not dataset.target_foreground.any()


def test_reading_a_slice_does_not_read_the_volume(tmp_path):
    path = tmp_path / "volume.nii"
    nib.save(nib.Nifti1Image(np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4), LPS), path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 2 * 3 * 4)  # the last slice is gone
    assert read_slice(path, 2)[0].tolist() == [[2, 6, 10], [14, 18, 22]]


def test_a_pair_names_the_site_of_its_target_slice(data, tmp_path):
    data["target"][0]["site"] = "ldn"  # of two slices; the other has seven and no site
    for roi_size in (None, (4, 4)):
        dataset = UnpairedSlices(data, transform(), tmp_path / "cache", roi_size=roi_size)
        found = [dataset[0, target, 0]["reals_site"] for target in range(9)]
        assert found == ["ldn"] * 2 + ["unknown"] * 7


def test_prepared_volumes_are_float32_with_the_affine_of_the_slices(data, tmp_path):
    volume = prepare_volumes(data["source"][:1], transform(), tmp_path / "cache")[0]
    image, label = nib.load(volume.image), nib.load(volume.label)
    assert len(volume) == 3
    assert (image.get_data_dtype(), label.get_data_dtype()) == (np.float32, np.uint8)
    assert np.allclose(image.affine, LPS)
    assert volume.image.name.startswith("s1-")
    assert volume.image.suffix == ".nii"


def test_what_is_prepared_is_not_prepared_again(data, tmp_path):
    first = prepare_volumes(data["source"], transform(), tmp_path / "cache", tmp_path / "out")

    def refuse(item):
        raise AssertionError

    refuse.settings = transform().settings
    assert prepare_volumes(data["source"], refuse, tmp_path / "cache") == first
    assert read_json(tmp_path / "out" / "progress.json")["done"] == 2


def test_other_settings_never_give_stale_data(data, tmp_path):
    first, other = (
        prepare_volumes(data["source"][:1], transform(percentiles), tmp_path / "cache")[0]
        for percentiles in ((0, 100), (20, 80))
    )
    assert not torch.equal(read_slice(first.image, 0), read_slice(other.image, 0))


@pytest.mark.parametrize("name", ["image", "label"])
def test_changed_files_never_give_stale_data(data, tmp_path, name):
    item = data["source"][0]
    first = prepare_volumes([item], transform(), tmp_path / "cache")[0]
    scan = nib.load(item[name])
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj)[::-1], scan.affine), item[name])
    os.utime(item[name], ns=(1, 1))
    second = prepare_volumes([item], transform(), tmp_path / "cache")[0]
    assert not torch.equal(read_slice(getattr(first, name), 1), read_slice(getattr(second, name), 1))


def test_an_interrupted_preparation_is_completed(data, tmp_path):
    volume = prepare_volumes(data["source"][:1], transform(), tmp_path / "cache")[0]
    volume.label.unlink()
    assert prepare_volumes(data["source"][:1], transform(), tmp_path / "cache")[0].label.is_file()


def test_a_bad_scan_is_refused_before_any_is_prepared(data, tmp_path):
    nib.save(nib.Nifti1Image(np.full((*SIZE, 3), np.nan, np.float32), LPS), tmp_path / "s2.nii.gz")
    with pytest.raises(InputError, match=r"s2\.nii\.gz"):
        prepare_volumes(data["source"], transform(), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_no_scans_are_refused(data, tmp_path, domain):
    with pytest.raises(InputError, match=domain):
        UnpairedSlices(data | {domain: []}, transform(), tmp_path / "cache")


@pytest.mark.parametrize(("size", "divisor"), [([2000, 4], 1), ([4, 6], 4)])
def test_an_impossible_window_is_refused_before_any_volume_is_prepared(data, tmp_path, size, divisor):
    with pytest.raises(InputError, match="roi_size is"):
        UnpairedSlices(data, transform(), tmp_path / "cache", roi_size=size, divisor=divisor)
    assert not (tmp_path / "cache").exists()


def test_augmentation_flips_left_to_right_with_the_label_and_follows_the_seed(data, dataset, tmp_path):
    plain, augmented = dataset[1, 0, 0], UnpairedSlices(data, transform(), tmp_path / "cache")
    flips = []
    for seed in range(20):
        item = augmented[1, 0, seed]
        again = augmented[1, 0, seed]
        assert item.keys() == again.keys()
        assert all(torch.equal(item[key], again[key]) for key in item if key != "reals_site")
        flipped = [not torch.equal(item[key], plain[key]) for key in ("image", "label", "reals")]
        for key, flip in zip(("image", "label", "reals"), flipped, strict=True):
            assert torch.equal(item[key], plain[key].flip(-2) if flip else plain[key])
        assert flipped[0] == flipped[1]
        flips.append((flipped[0], flipped[2]))
    assert len(set(flips)) == 4


def test_an_epoch_holds_every_source_slice_once(dataset):
    drawn = list(UnpairedSampler(dataset))
    assert sorted(source for source, _, _ in drawn) == list(range(7))
    assert len({target for _, target, _ in drawn}) == 7
    assert len({seed for _, _, seed in drawn}) == 7


def test_draws_depend_on_seed_and_epoch_only(dataset):
    def draw(seed, epoch):
        sampler = UnpairedSampler(dataset, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draw(3, 5) == draw(3, 5)
    assert draw(3, 5) != draw(3, 6)
    assert draw(3, 5) != draw(4, 5)
    assert draw(None, 1) == draw(0, 1)


@pytest.mark.parametrize(("slices_per_epoch", "length"), [(None, 3), (10, 4), (2, 1)])
def test_ranks_share_an_epoch_in_equal_parts(dataset, slices_per_epoch, length):
    parts = [UnpairedSampler(dataset, 0, slices_per_epoch, num_replicas=3, rank=rank) for rank in range(3)]
    assert [len(part) for part in parts] == [length] * 3
    assert [len(list(part)) for part in parts] == [length] * 3
    whole = list(UnpairedSampler(dataset, 0, length * 3))
    assert [item for items in zip(*parts, strict=True) for item in items] == whole


def test_the_share_of_foreground_is_as_asked_for(data, tmp_path):
    data["target"].append({**write_scan(tmp_path, "t3", 5, label=True), "pseudo": True})
    dataset = UnpairedSlices(data, transform(), tmp_path / "cache")
    drawn = np.array(list(UnpairedSampler(dataset, 0, 40, foreground_probability=0.75)))
    assert dataset.source_foreground[drawn[:, 0]].sum() == 30
    assert dataset.target_foreground[drawn[:, 1]].sum() == 30
    assert len(set(drawn[:, 0])) == 7


def test_without_pseudo_labels_target_slices_are_drawn_alike(dataset):
    drawn = np.array(list(UnpairedSampler(dataset, 0, 90, foreground_probability=1)))
    assert set(drawn[:, 0]) == {1, 4}
    assert np.bincount(drawn[:, 1]).tolist() == [10] * 9


def test_batches_are_the_same_for_any_number_of_workers(data, tmp_path):
    dataset = UnpairedSlices(data, transform(), tmp_path / "cache")

    def batches(num_workers):
        sampler = UnpairedSampler(dataset, seed=1)
        return list(DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=num_workers, drop_last=True))

    alone, helped = batches(0), batches(2)
    assert len(alone) == len(helped) == 2
    assert alone[0]["image"].shape == (3, 1, *SIZE)
    for one, other in zip(alone, helped, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "reals", "reals_label", "reals_site"}
        assert one.pop("reals_site") == other.pop("reals_site") == ["unknown"] * 3
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_monai_trainers_draw_each_epoch_anew(dataset):
    sampler, seen = UnpairedSampler(dataset), []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(dataset, batch_size=7, sampler=sampler),
        network=torch.nn.Identity(),
        optimizer=None,
        loss_function=None,
        iteration_update=lambda engine, batch: seen.append(batch["image"]),
    )
    trainer.run()
    for epoch, images in enumerate(seen, start=1):
        sampler.set_epoch(epoch)
        assert torch.equal(images, torch.stack([dataset[index]["image"] for index in sampler]))
    assert not torch.equal(*seen)


class TestWindow:
    def test_both_slices_are_cut_at_one_place_that_holds_foreground(self, tmp_path):
        from plugins.data.slices import _window

        label = torch.zeros(12, 10)
        label[11, 2] = 2
        starts = set()
        for seed in range(40):
            rows, columns = _window(label, (4, 6), np.random.default_rng(seed))
            assert (rows.stop - rows.start, columns.stop - columns.start) == (4, 6)
            assert label[rows, columns].shape == (4, 6)
            assert label[rows, columns].max() == 2
            starts.add((rows.start, columns.start))
        assert len(starts) > 2

    def test_without_foreground_it_may_lie_anywhere(self):
        from plugins.data.slices import _window

        windows = [_window(torch.zeros(6, 7), (4, 4), np.random.default_rng(seed)) for seed in range(200)]
        assert {(rows.start, columns.start) for rows, columns in windows} == {
            (r, c) for r in range(3) for c in range(4)
        }
