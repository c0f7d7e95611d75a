import numpy as np
import pytest
import torch
from torch import nn

from plugins.engines import DiscriminatorAugmentation
from plugins.engines.augmentation import gradient_penalty, regions_of_logits
from plugins.errors import InputError
from plugins.networks import PatchDiscriminator


class TestAugmentation:
    def test_without_shift_and_box_nothing_changes(self):
        images = torch.rand(3, 2, 9, 7)
        assert torch.equal(DiscriminatorAugmentation(0, 0)(images), images)

    @pytest.mark.parametrize("size", [(12, 8), (6, 8, 10)])
    def test_each_image_is_shifted_as_a_whole_and_repeats_its_edge(self, size):
        images = torch.rand(4, 2, *size, dtype=torch.float64)
        shifted = DiscriminatorAugmentation(0.25, 0)(images).numpy()
        reaches = [round(axis / 4) for axis in size]
        used = set()
        for image, found in zip(images.numpy(), shifted, strict=True):
            padded = np.pad(image, [(0, 0), *((reach, reach) for reach in reaches)], mode="edge")
            offsets = [
                at
                for at in np.ndindex(*(2 * reach + 1 for reach in reaches))
                if np.array_equal(
                    padded[(slice(None), *(slice(a, a + n) for a, n in zip(at, size, strict=True)))], found
                )
            ]
            assert len(offsets) == 1
            used.add(offsets[0])
        assert len(used) > 1

    def test_the_box_is_blank_and_all_else_untouched(self):
        images = torch.rand(50, 2, 12, 8) + 1
        made = DiscriminatorAugmentation(0, 0.5)(images)
        blank = made[:, 0] == 0
        assert torch.equal(made[:, 1] == 0, blank)
        assert torch.equal(made[~blank[:, None].expand_as(made)], images[~blank[:, None].expand_as(made)])
        assert blank.flatten(1).sum(1).max() == 6 * 4
        for one in blank:
            rows, columns = one.any(1).sum(), one.any(0).sum()
            assert one.sum() == rows * columns  # a box

    def test_gradients_reach_the_pixels_that_are_seen_and_those_alone(self):
        images = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)

        def augmented(images):
            torch.manual_seed(3)
            return DiscriminatorAugmentation(0.25, 0.5)(images)

        assert torch.autograd.gradcheck(augmented, images)

    def test_boxes_are_centred_on_every_pixel_and_stick_out_at_the_edges(self):
        blank = DiscriminatorAugmentation(0, 0.5)(torch.ones(600, 1, 8, 6)).eq(0)[:, 0]
        for axis, (size, side) in enumerate(((8, 4), (6, 3)), start=1):
            rows = {tuple(each.nonzero()[:, 0].tolist()) for each in blank.any(3 - axis)}
            starts = range(-(side // 2), size - side // 2)
            assert rows == {tuple(at for at in range(start, start + side) if 0 <= at < size) for start in starts}

    def test_every_shift_up_to_the_largest_comes_either_way(self):
        ramp = torch.arange(8.0).expand(300, 1, 8, 8)
        shifts = (3 - DiscriminatorAugmentation(0.25, 0)(ramp)[:, 0, 0, 3]).unique()
        assert shifts.tolist() == [-2, -1, 0, 1, 2]

    def test_by_default_shifts_are_an_eighth_and_boxes_half(self):
        images, made = torch.rand(4, 1, 16, 16), []
        for augment in (DiscriminatorAugmentation(), DiscriminatorAugmentation(0.125, 0.5)):
            torch.manual_seed(1)
            made.append(augment(images))
        assert torch.equal(*made)

    def test_a_box_of_the_whole_image_covers_it_from_its_middle_on(self):
        made = DiscriminatorAugmentation(0, 1)(torch.ones(200, 1, 4, 4))
        assert made.flatten(1).sum(1).min() == 0
        assert made.flatten(1).sum(1).max() == 16 - 4

    @pytest.mark.parametrize("name", ["translation", "cutout"])
    def test_shares_from_0_to_1_are_taken_and_others_refused_by_name(self, name):
        for share in (0, 1):
            DiscriminatorAugmentation(**{name: share})
        for share in (-0.01, 1.01, float("nan")):
            with pytest.raises(InputError, match=f"{name} is {share}"):
                DiscriminatorAugmentation(**{name: share})

    def test_a_share_out_of_range_is_refused(self):
        with pytest.raises(InputError, match=r"translation is 1\.5"):
            DiscriminatorAugmentation(translation=1.5)


class TestRegions:
    def test_blocks_around_the_centres_hold_the_highest_label(self):
        label = torch.from_numpy(np.random.default_rng(0).choice(3, (2, 1, 32, 48), p=(0.97, 0.02, 0.01)))
        regions = regions_of_logits(label, [2, 4], 8)
        assert regions.shape == (2, 3, 2, 4)
        for n in range(2):
            for row in range(2):
                for column in range(4):
                    top, left = 8 + 8 * row, 8 + 8 * column
                    highest = int(label[n, 0, top : top + 8, left : left + 8].max())
                    assert regions[n, :, row, column].tolist() == [highest == region for region in range(3)]

    @pytest.mark.parametrize("at", [(17, 40), (31, 8), (50, 23)])
    def test_a_pixels_logit_is_the_one_whose_receptive_field_is_centred_on_it(self, at):
        network = PatchDiscriminator(channels=1, num_layers_d=2, anti_aliased=False)
        logits = network.logits(torch.zeros(1, 1, 64, 64))
        label = torch.zeros(1, 1, 64, 64)
        label[0, 0, at[0], at[1]] = 2
        place = regions_of_logits(label, list(logits.shape[2:]), network.logit_stride)[0, 2].nonzero()[0]
        spans = []  # of the centre, back through the convolutions
        for logit in place.tolist():
            low = high = logit
            for stride in (1, 1, 2, 2):
                low, high = low * stride - 1, high * stride + 2
            spans.append((low + high) / 2)
        assert all(abs(centre - pixel) <= network.logit_stride / 2 for centre, pixel in zip(spans, at, strict=True))

    @pytest.mark.parametrize(
        ("size", "logits", "stride"), [((13, 10), (3, 2), 3), ((9, 9), (2, 3), 4), ((6, 7), (2, 3), 2)]
    )
    def test_logits_lie_in_the_middle_and_blocks_beyond_the_image_are_others(self, size, logits, stride):
        label = torch.from_numpy(np.random.default_rng(1).choice(3, (1, 1, *size), p=(0.8, 0.1, 0.1)))
        regions = regions_of_logits(label, list(logits), stride)[0].int().argmax(0)
        for at in np.ndindex(*logits):
            highest = 0
            for pixel in np.ndindex(*size):
                blocks = [
                    (p + (n * stride - whole) // 2) // stride for p, n, whole in zip(pixel, logits, size, strict=True)
                ]
                if blocks == list(at):
                    highest = max(highest, int(label[(0, 0, *pixel)]))
            assert regions[at] == highest

    def test_labels_that_are_a_little_off_are_rounded(self):
        label = torch.tensor([0.9999, 1.0001, 1.9999, 0.0001]).view(1, 1, 2, 2)
        assert regions_of_logits(label, [2, 2], 1)[0].int().argmax(0).tolist() == [[1, 1], [2, 0]]

    def test_volumes_have_regions_too(self):
        label = torch.zeros(1, 1, 16, 16, 16)
        label[0, 0, 8, 8, 8] = 2
        assert regions_of_logits(label, [2, 2, 2], 4)[:, 2].sum() == 1


class TestPenalty:
    def test_of_a_linear_patch_it_is_the_squared_length_of_its_weights(self):
        convolution = nn.Conv2d(1, 1, 4, stride=4).double()
        penalty = gradient_penalty(lambda x: [convolution(x.double())], torch.rand(3, 1, 8, 12))
        assert penalty.item() == pytest.approx(convolution.weight.square().sum().item(), rel=1e-6)

    @pytest.mark.parametrize("anti_aliased", [False, True])
    def test_its_gradient_is_that_of_finite_differences(self, anti_aliased):
        torch.manual_seed(0)
        network = PatchDiscriminator(channels=2, num_layers_d=1, anti_aliased=anti_aliased)
        real = torch.rand(2, 1, 16, 16)
        gradient_penalty(network, real).backward()
        weight = network.initial_conv.conv.weight
        analytic, step = weight.grad[0, 0, 1, 2].item(), 1e-2
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[0, 0, 1, 2] += sign * step
            values.append(gradient_penalty(network, real).item())
            with torch.no_grad():
                weight[0, 0, 1, 2] -= sign * step
        assert analytic == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.1, abs=1e-4)
