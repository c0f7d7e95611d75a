import math

import numpy as np
import pytest
import torch

from plugins.networks import AttentionQueries, ContrastiveLoss, RandomQueries, attention_entropy, patch_nce
from plugins.networks.queries import window_positions


def features(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_attention(source):
    flat = source.flatten(2).transpose(1, 2)
    attention = (flat @ flat.transpose(1, 2)).softmax(dim=2)
    logs = torch.where(attention > 0, attention.log(), 0)
    return attention, -(attention * logs).sum(dim=2)


class TestPatchNCE:
    def test_it_is_the_equation_term_by_term(self):
        q, k = features(2, 5, 4), features(2, 5, 4, seed=1)
        terms = [
            -math.log(math.exp(q[n, i] @ k[n, i] / 0.07) / sum(math.exp(q[n, i] @ k[n, j] / 0.07) for j in range(5)))
            for n in range(2)
            for i in range(5)
        ]
        assert patch_nce(q, k).item() == pytest.approx(sum(terms) / 10, rel=1e-12)

    def test_orthogonal_matches_cost_nothing_and_one_query_is_free(self):
        unit = torch.eye(4, dtype=torch.float64)[None]
        assert patch_nce(unit, unit, temperature=0.01).item() < 1e-12
        assert patch_nce(unit[:, :1], unit[:, 1:2]).item() == 0

    def test_equal_keys_cost_the_log_of_their_number(self):
        q = features(1, 6, 3)
        assert patch_nce(q, torch.ones_like(q)).item() == pytest.approx(math.log(6))

    def test_keys_get_no_gradient(self):
        q, k = features(1, 4, 3).requires_grad_(), features(1, 4, 3, seed=1).requires_grad_()
        patch_nce(q, k).backward()
        assert k.grad is None
        assert q.grad.abs().sum() > 0

    def test_half_precision_is_computed_in_float32(self):
        q = features(1, 4, 3).to(torch.bfloat16)
        assert patch_nce(q, q).dtype == torch.float32

    def test_negatives_come_from_the_same_image_only(self):
        q, k = features(2, 4, 3), features(2, 4, 3, seed=1)
        parts = [patch_nce(q[n : n + 1], k[n : n + 1]) for n in range(2)]
        torch.testing.assert_close(patch_nce(q, k), torch.stack(parts).mean())

    def test_the_temperature_divides_the_products_and_is_007_by_default(self):
        q, k = features(1, 4, 3), features(1, 4, 3, seed=1)
        for temperature in (0.07, 0.5, 2.0):
            torch.testing.assert_close(patch_nce(q, k, temperature), patch_nce(q / temperature, k, 1.0))
        assert patch_nce(q, k) == patch_nce(q, k, 0.07)

    def test_inside_autocast_it_is_the_same(self):
        q, k = features(1, 4, 3).float(), features(1, 4, 3, seed=1).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = patch_nce(q, k)
        assert inside == patch_nce(q, k)


class TestAttentionQueries:
    @pytest.mark.parametrize("rows_per_chunk", [1, 7, 64, 1000])
    def test_entropy_is_that_of_the_whole_matrix(self, rows_per_chunk):
        source = features(2, 8, 6, 10)
        entropy = attention_entropy(source.flatten(2).transpose(1, 2), rows_per_chunk)
        torch.testing.assert_close(entropy, naive_attention(source)[1], rtol=1e-10, atol=1e-12)

    def test_underflowing_attention_has_entropy_zero(self):
        source = 100 * torch.eye(9, dtype=torch.float64)[None]
        torch.testing.assert_close(attention_entropy(source), torch.zeros(1, 9, dtype=torch.float64))

    @pytest.mark.parametrize("side", [64, 96])
    def test_rows_and_loss_are_those_of_the_naive_form(self, side):
        source, translated = features(1, 8, side, side) / 2, features(1, 8, side, side, seed=1) / 2
        select = AttentionQueries(num_queries=32)
        attention, entropy = naive_attention(source)
        rows = entropy.sort(dim=1, stable=True).indices[:, :32]
        assert torch.equal(select.rows(source), rows)
        routed = [attention[0, rows[0]] @ each[0].flatten(1).T for each in (translated, source)]
        route = select(source)
        torch.testing.assert_close(patch_nce(route(translated), route(source)), patch_nce(*(r[None] for r in routed)))

    def test_gradient_reaches_the_source_through_the_routing(self):
        source, translated = features(1, 4, 5, 6).requires_grad_(), features(1, 4, 5, 6, seed=1)
        ours = torch.autograd.grad(AttentionQueries(3)(source)(translated).square().sum(), source)[0]
        attention, entropy = naive_attention(source)
        rows = entropy.sort(dim=1).indices[0, :3]
        routed = attention[0, rows] @ translated[0].flatten(1).T
        torch.testing.assert_close(ours, torch.autograd.grad(routed.square().sum(), source)[0])

    def test_a_map_smaller_than_the_queries_gives_all_rows(self):
        source = features(1, 4, 2, 3)
        assert AttentionQueries(256)(source)(source).shape == (1, 6, 4)

    @pytest.mark.parametrize("attention", ["global", "local", "local_global"])
    def test_queries_of_several_samples_are_those_of_each_alone(self, attention):
        source, translated = features(3, 4, 4, 5), features(3, 4, 4, 5, seed=1)
        select = AttentionQueries(6, attention, window=3)
        together = select(source)(translated)
        alone = [select(source[n : n + 1])(translated[n : n + 1]) for n in range(3)]
        torch.testing.assert_close(together, torch.cat(alone))

    @pytest.mark.parametrize("attention", ["global", "local", "local_global"])
    def test_half_precision_and_autocast_select_by_float32(self, attention):
        source = features(1, 4, 5, 6).to(torch.bfloat16)
        select = AttentionQueries(6, attention, window=3)
        assert select.entropy(source).dtype == torch.float32
        assert not select.entropy(source.float().requires_grad_()).requires_grad
        expected = select(source.float())(source.float())
        assert select(source)(source).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(select.entropy(source), select.entropy(source.float()), rtol=0, atol=0)
            assert torch.equal(select.rows(source), select.rows(source.float()))
            torch.testing.assert_close(select(source)(source).float(), expected, rtol=2e-2, atol=2e-2)

    def test_rows_of_equal_entropy_are_taken_in_order(self):
        rows = AttentionQueries(5).rows(torch.ones(2, 3, 4, 4))
        assert rows.tolist() == [[0, 1, 2, 3, 4]] * 2

    def test_the_defaults_are_256_queries_over_everything_and_windows_of_7(self):
        select = AttentionQueries()
        assert (select.num_queries, select.attention, select.window, select.rows_per_chunk) == (256, "global", 7, 512)
        assert RandomQueries().num_queries == 256


@pytest.mark.parametrize(("size", "window"), [((4, 6), 3), ((3, 5), 5), ((2, 3, 4), 3), ((5,), 3)])
def test_a_window_holds_the_neighbours_inside_the_map(size, window):
    flat, inside = window_positions(size, window)
    index, reach = torch.arange(math.prod(size)).reshape(size), window // 2
    assert flat.shape == inside.shape == (math.prod(size), window ** len(size))
    assert flat.min() == 0
    assert flat.max() == math.prod(size) - 1
    for row, place in enumerate(np.ndindex(*size)):
        around = tuple(slice(max(0, at - reach), at + reach + 1) for at in place)
        assert flat[row][inside[row]].tolist() == index[around].flatten().tolist()


def naive_windows(source, window):
    """Attention rows over the window of each position, one position at a time: lists of keys and of weights."""
    _, channels, *size = source.shape
    flat, index = source[0].reshape(channels, -1), torch.arange(source[0, 0].numel()).reshape(size)
    keys, weights = [], []
    for place in torch.cartesian_prod(*[torch.arange(length) for length in size]).tolist():
        around = tuple(slice(max(0, at - window // 2), at + window // 2 + 1) for at in place)
        keys.append(index[around].flatten())
        weights.append((flat[:, index[tuple(place)]] @ flat[:, keys[-1]]).softmax(0))
    return keys, weights


class TestLocalAttention:
    @pytest.mark.parametrize("size", [(6, 9), (3, 4, 5)])
    @pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
    def test_rows_and_loss_are_those_of_the_naive_form(self, size, rows_per_chunk):
        source, translated = features(1, 4, *size), features(1, 4, *size, seed=1)
        select = AttentionQueries(5, attention="local", window=3, rows_per_chunk=rows_per_chunk)
        keys, weights = naive_windows(source, 3)
        entropy = torch.stack([-(row * row.log()).sum() for row in weights])
        rows = entropy.sort(stable=True).indices[:5]
        torch.testing.assert_close(select.entropy(source)[0], entropy)
        assert torch.equal(select.rows(source)[0], rows)
        routed = [
            torch.stack([weights[row] @ each[0].flatten(1).T[keys[row]] for row in rows.tolist()])
            for each in (translated, source)
        ]
        route = select(source)
        torch.testing.assert_close(patch_nce(route(translated), route(source)), patch_nce(*(r[None] for r in routed)))

    def test_local_rows_are_routed_over_all_positions_if_asked_for(self):
        source, translated = features(2, 4, 6, 9), features(2, 4, 6, 9, seed=1)
        select = AttentionQueries(5, attention="local_global", window=3)
        rows = AttentionQueries(5, attention="local", window=3).rows(source)
        attention, _ = naive_attention(source)
        assert torch.equal(select.rows(source), rows)
        for n in range(2):
            expected = attention[n, rows[n]] @ translated[n].flatten(1).T
            torch.testing.assert_close(select(source)(translated)[n], expected)

    def test_a_window_over_the_whole_map_is_global_attention(self):
        source, translated = features(2, 3, 4, 5), features(2, 3, 4, 5, seed=1)
        routes = [AttentionQueries(6, attention=name, window=9)(source)(translated) for name in ("global", "local")]
        torch.testing.assert_close(*routes)

    def test_a_window_of_one_position_routes_the_feature_itself(self):
        source = features(1, 3, 4, 5)
        select = AttentionQueries(20, attention="local", window=1)
        torch.testing.assert_close(select(source)(source), source.flatten(2).transpose(1, 2)[:, select.rows(source)[0]])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"attention": "glocal"}, "global, local, local_global, not 'glocal'"),
            ({"window": 4}, "odd, not 4"),
            ({"window": 0}, "odd, not 0"),
            ({"window": -1}, "odd, not -1"),
        ],
    )
    def test_a_wrong_argument_is_named(self, settings, message):
        with pytest.raises(ValueError, match=message):
            AttentionQueries(**settings)


class TestRandomQueries:
    def test_both_images_take_the_same_positions(self):
        index = torch.arange(30.0).view(1, 1, 5, 6)
        route = RandomQueries(8)(index)
        assert torch.equal(route(index), route(index.clone()))
        assert len(set(route(index).flatten().tolist())) == 8

    def test_a_map_of_fewer_positions_gives_each_once(self):
        index = torch.arange(12.0).view(1, 1, 3, 4)
        assert sorted(RandomQueries(13)(index)(index).flatten().tolist()) == list(range(12))

    def test_vectors_are_those_of_the_drawn_positions_in_every_sample_of_a_volume(self):
        index = torch.arange(24.0).view(1, 1, 2, 3, 4)
        maps = torch.cat([index, index + 100]).repeat(1, 2, 1, 1, 1) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1)
        vectors = RandomQueries(5)(maps)(maps)
        assert vectors.shape == (2, 5, 2)
        assert torch.equal(vectors[1, :, 0], vectors[0, :, 0] + 100)
        assert torch.equal(vectors[..., 1], -vectors[..., 0])

    def test_every_position_can_be_drawn(self):
        index = torch.arange(12.0).view(1, 1, 3, 4)
        drawn = {value for _ in range(100) for value in RandomQueries(2)(index)(index).flatten().tolist()}
        assert drawn == set(range(12))


class TestContrastiveLoss:
    def test_it_is_the_mean_over_layers(self):
        layers = [features(1, 3, 4, 4), features(1, 5, 2, 2)]
        others = [features(1, 3, 4, 4, seed=1), features(1, 5, 2, 2, seed=1)]
        loss = ContrastiveLoss([AttentionQueries(4), AttentionQueries(4)])
        project = lambda vectors: [torch.nn.functional.normalize(v, dim=-1) for v in vectors]  # noqa: E731
        single = [
            ContrastiveLoss([AttentionQueries(4)])([a], [b], project) for a, b in zip(layers, others, strict=True)
        ]
        torch.testing.assert_close(loss(layers, others, project), torch.stack(single).mean())

    def test_its_temperature_is_that_of_every_layer_and_007_by_default(self):
        layers, others = [features(1, 3, 4, 4)], [features(1, 3, 4, 4, seed=1)]
        select = AttentionQueries(4)
        route = select(layers[0])
        for settings, temperature in (({}, 0.07), ({"temperature": 0.5}, 0.5)):
            expected = patch_nce(route(others[0]), route(layers[0]), temperature)
            torch.testing.assert_close(ContrastiveLoss([select], **settings)(layers, others, list), expected)

    def test_source_gives_the_route_and_the_keys_and_translation_the_queries(self):
        source, translated = features(1, 3, 4, 4).requires_grad_(), features(1, 3, 4, 4, seed=1).requires_grad_()
        loss = ContrastiveLoss([RandomQueries(4)])([source], [translated], list)
        given = torch.autograd.grad(loss, (source, translated), allow_unused=True)
        assert given[0] is None
        assert given[1].abs().sum() > 0

    @pytest.mark.parametrize(("layers", "others", "selections"), [(2, 2, 1), (1, 2, 1), (1, 2, 2), (2, 1, 2)])
    def test_layers_and_selections_must_be_as_many(self, layers, others, selections):
        loss = ContrastiveLoss([RandomQueries()] * selections)
        with pytest.raises(ValueError, match=f"There are {selections} selections for {layers} and {others} layers"):
            loss([features(1, 2, 2, 2)] * layers, [features(1, 2, 2, 2)] * others, list)

    def test_a_missing_layer_is_named(self):
        with pytest.raises(ValueError, match="2 selections for 1"):
            ContrastiveLoss([RandomQueries(), RandomQueries()])([features(1, 2, 2, 2)], [features(1, 2, 2, 2)], list)
