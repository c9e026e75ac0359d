"""Training on random networks: the cheap forward is the plain one, the loss falls, runs can be interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wsisam_model.adapters import Adapter, Adapters
from wsisam_model.checkpoints import AdapterWeights
from wsisam_model.config import model_config
from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError
from wsisam_model.network import ViewFeatures, WsiSam
from wsisam_model.point_box import may_be_wider, readings, reread, with_point_box
from wsisam_model.prompt_tensors import branch_prompt
from wsisam_model.prompts import Prompt
from wsisam_model.train import draws
from wsisam_model.train.augment import changed_copies
from wsisam_model.train.cache import EmbeddingCache, HeldEmbeddings
from wsisam_model.train.forward import WHOLE, Query, TrainingDecoder, Window
from wsisam_model.train.provenance import data_text, fingerprint_of, groups_in, licence_text
from wsisam_model.train.recipe import Recipe
from wsisam_model.train.samples import Pixels, Sample, held_out_groups
from wsisam_model.train.start import finished_state, fresh_adapters, part_of_the_way
from wsisam_model.train.trainer import Trainer, window_around

CONFIG = model_config("lite_medsam")
QUICK = Recipe(steps=4, samples_per_step=1, prompts_per_sample=1, warmup=1, learning_rate=3e-3)


@pytest.fixture(scope="module")
def sample() -> Sample:
    """A disc of 30 pixels radius; the pixels are never looked at, since the embedding comes from `embed`."""
    y, x = np.mgrid[:256, :256]
    mask = (x - 120) ** 2 + (y - 140) ** 2 < 30**2
    lr_mask = (x - 124) ** 2 + (y - 134) ** 2 < 15**2
    blank = np.full((256, 256, 3), 255, np.uint8)
    return Sample("disc", "set", "patient", blank, blank, mask, lr_mask, 1.0, 2827.0, 0.25, cut=False)


@pytest.fixture(scope="module")
def embedding(sample: Sample) -> Embedding:
    """Features in which the disc stands out."""
    generator = torch.Generator().manual_seed(4)
    inside = torch.from_numpy(sample.mask[::4, ::4]).float()
    E = torch.randn(256, 64, 64, generator=generator) * 0.1 + inside * torch.randn(256, 1, 1, generator=generator)
    X = torch.randn(160, 64, 64, generator=generator) * 0.1 + inside * torch.randn(160, 1, 1, generator=generator)
    return Embedding(E, X, (256, 256))


@pytest.fixture(scope="module")
def base() -> WsiSam:
    torch.manual_seed(1)
    return WsiSam(256).requires_grad_(False).eval()


def make_trainer(
    folder: Path, base: WsiSam, sample: Sample, embedding: Embedding, recipe: Recipe, *, fingerprint: str = "ab"
) -> Trainer:
    decoder = TrainingDecoder(base, fresh_adapters(base, CONFIG, seed=recipe.seed), CONFIG)
    return Trainer(decoder, [sample], lambda view: embedding, recipe, folder, fingerprint=fingerprint)


def test_the_training_forward_gives_the_plain_networks_logits(
    random_network: WsiSam,
    random_adapters: Adapters,
    random_views: tuple[ViewFeatures, ViewFeatures],
    prompts: dict[str, Prompt],
) -> None:
    hr, lr = random_views
    decoder = TrainingDecoder(random_network, random_adapters, CONFIG)
    pair = [Embedding(view.embedding, view.early, (256, 256)) for view in random_views]
    window = Window(10, 20, 30)
    kinds = ("points", "masks and point")
    answers = decoder([Query(*pair, prompts[kind], window) for kind in kinds])
    for kind, answer in zip(kinds, answers, strict=True):
        tensors = [
            branch_prompt([prompts[kind]], (256, 256), CONFIG, lr=wide, like=decoder.position) for wide in (False, True)
        ]
        plain = random_network.dual_decode(random_adapters, hr, tensors[0], lr, tensors[1])
        torch.testing.assert_close(answer.logits, plain.logits_hr[0][window.pixels], atol=1e-9, rtol=0)
        torch.testing.assert_close(answer.sam, plain.hr.sam_masks[0, 0][window.pixels], atol=1e-9, rtol=0)


def test_fresh_adapters_start_from_the_sam_mask_of_their_own_pass(base: WsiSam, embedding: Embedding) -> None:
    decoder = TrainingDecoder(base, fresh_adapters(base, CONFIG, seed=0), CONFIG)
    with torch.no_grad():
        (answer,) = decoder([Query(embedding, embedding, Prompt(box=(80.0, 100.0, 160.0, 180.0)))])
    torch.testing.assert_close(answer.logits, answer.sam)


def test_the_loss_falls(tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding) -> None:
    recipe = Recipe(
        steps=16, samples_per_step=1, prompts_per_sample=1, branches="hr", boxes=1.0, warmup=1, learning_rate=3e-3
    )
    trainer = make_trainer(tmp_path, base, sample, embedding, recipe)
    trainer.run()
    losses = [row.loss for row in trainer.log]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_resumed_run_ends_like_an_uninterrupted_one(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding
) -> None:
    whole = make_trainer(tmp_path / "whole", base, sample, embedding, QUICK)
    whole.run()
    first = make_trainer(tmp_path / "parts", base, sample, embedding, QUICK)
    first.run(until=2)
    first.save()
    second = make_trainer(tmp_path / "parts", base, sample, embedding, QUICK)
    assert second.resume()
    second.run()
    np.testing.assert_equal([vars_of(row) for row in second.log], [vars_of(row) for row in whole.log])
    for key, tensor in whole.decoder.adapters.state_dict().items():
        torch.testing.assert_close(second.decoder.adapters.state_dict()[key], tensor, rtol=0, atol=0)
        torch.testing.assert_close(second.average[key], whole.average[key], rtol=0, atol=0)


def test_what_is_kept_is_the_mean_of_the_weights_on_the_way(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding
) -> None:
    trainer = make_trainer(tmp_path, base, sample, embedding, replace(QUICK, steps=3))
    key, seen = "hr.hf_mlp.layers.2.bias", []
    for step in range(1, 4):
        trainer.run(until=step)
        seen.append(trainer.decoder.adapters.state_dict()[key].clone())
    begin = torch.zeros_like(seen[0])  # that is how the last layer starts
    expected = begin
    for step, tensor in enumerate(seen, start=1):
        expected = torch.lerp(expected, tensor, 10 / (step + 10))
    torch.testing.assert_close(trainer.average[key], expected)


def vars_of(row: object) -> list[float]:
    return [getattr(row, name) for name in ("step", "loss", "box_loss", "point_loss", "learning_rate")]


@pytest.mark.parametrize(
    "another",
    [(Recipe(steps=5), "ab", "another recipe"), (QUICK, "cd", "other data, start or base weights")],
    ids=["recipe", "data"],
)
def test_a_checkpoint_of_another_training_is_not_resumed(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding, another: tuple[Recipe, str, str]
) -> None:
    make_trainer(tmp_path, base, sample, embedding, QUICK).save()
    recipe, fingerprint, told = another
    other = make_trainer(tmp_path, base, sample, embedding, recipe, fingerprint=fingerprint)
    with pytest.raises(ValueError, match=told):
        other.resume()


def test_a_fingerprint_tells_apart_what_a_training_is_made_of(sample: Sample) -> None:
    start = {"hr.a": torch.zeros(2), "hr.b": torch.ones(2)}
    other = replace(sample, object_id="another")
    moved, darker = np.roll(sample.mask, 1), sample.hr - 1
    trainings = [
        fingerprint_of([sample, other], start, model="m", base_sha256="1"),
        fingerprint_of([sample], start, model="m", base_sha256="1"),
        fingerprint_of([sample, replace(other, mask=moved)], start, model="m", base_sha256="1"),
        fingerprint_of([sample, replace(other, hr=darker)], start, model="m", base_sha256="1"),
        fingerprint_of([sample, replace(other, group="of another patient")], start, model="m", base_sha256="1"),
        fingerprint_of([sample, other], {**start, "hr.b": torch.zeros(2)}, model="m", base_sha256="1"),
        fingerprint_of([sample, other], start, model="m", base_sha256="2"),
        fingerprint_of([sample, other], start, model="n", base_sha256="1"),
    ]
    assert len(set(trainings)) == len(trainings)
    again = fingerprint_of([replace(sample, hr=sample.hr.copy()), other], start, model="m", base_sha256="1")
    assert again == trainings[0], "arrays of their own with the same pixels"


def test_a_damaged_checkpoint_is_told_by_name(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding
) -> None:
    trainer = make_trainer(tmp_path, base, sample, embedding, QUICK)
    trainer.save()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: damaged"):
        trainer.resume()


def test_resuming_writes_the_log_that_a_stop_cut_short(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log.csv"
    trainer = make_trainer(tmp_path, base, sample, embedding, replace(QUICK, steps=2))
    trainer.run(until=1)
    trainer.save()
    older = log.read_text()
    with monkeypatch.context() as patch:
        patch.setattr("csv.DictWriter.writerows", lambda *_: trainer.no_such_thing)
        with pytest.raises(AttributeError):
            trainer.run()
    assert log.read_text() == older, "never half of one"
    assert make_trainer(tmp_path, base, sample, embedding, replace(QUICK, steps=2)).resume()
    assert [line.split(",")[0] for line in log.read_text().splitlines()] == ["step", "1", "2"]


def test_training_hr_alone_leaves_the_lr_branch_and_the_base_as_they_were(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding
) -> None:
    recipe = Recipe(steps=1, samples_per_step=1, prompts_per_sample=1, warmup=0, branches="hr")
    trainer = make_trainer(tmp_path, base, sample, embedding, recipe)
    before = {key: tensor.clone() for key, tensor in trainer.decoder.state_dict().items()}
    trainer.run()
    changed = {key for key, tensor in trainer.decoder.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed
    assert all(key.startswith(("adapters.hr.", "adapters.prompt.")) for key in changed)


def test_what_is_saved_gives_the_lr_branch_the_hr_branchs_mask_features(base: WsiSam) -> None:
    state = finished_state(fresh_adapters(base, CONFIG, seed=0))
    for name in ("embedding_encoder.0.weight", "compress_vit_feat.3.bias", "embedding_maskfeature.3.weight"):
        torch.testing.assert_close(state[f"lr.{name}"], state[f"hr.{name}"])
    Adapters.from_state(state)


@pytest.mark.parametrize(("branch", "setting"), [("hr", "shrink"), ("lr", "lr_shrink")])
def test_a_token_may_be_saved_at_a_share_of_what_it_learned(
    base: WsiSam, embedding: Embedding, branch: str, setting: str
) -> None:
    adapters = fresh_adapters(base, CONFIG, seed=0)
    torch.nn.init.normal_(getattr(adapters, branch).hf_mlp.layers[-1].weight, std=0.1)
    whole, half = (Adapters.from_state(finished_state(adapters, **{setting: share})) for share in (1.0, 0.5))
    query = Query(embedding, embedding, Prompt(box=(40, 40, 200, 180)))
    with torch.no_grad():
        logits = [TrainingDecoder(base, one, CONFIG)([query])[0].logits for one in (adapters, whole, half)]
        (sam,) = TrainingDecoder(base, adapters, CONFIG)([replace(query, lr=None, hr_token_weight=0.0)])
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[1], sam.logits)
    torch.testing.assert_close(logits[2] - sam.logits, 0.5 * (logits[1] - sam.logits), rtol=1e-3, atol=1e-3)


def test_views_are_encoded_once(tmp_path: Path, sample: Sample, embedding: Embedding) -> None:
    calls = []

    def encode(views: object) -> list[Embedding]:
        calls.append(views)
        return [embedding]

    cache = EmbeddingCache(tmp_path, "model:1", encode)
    cache.fill([sample.hr, sample.lr])
    again = EmbeddingCache(tmp_path, "model:1", encode)(sample.hr)
    assert len(calls) == 1
    torch.testing.assert_close(again.embedding, embedding.embedding.half())
    EmbeddingCache(tmp_path, "model:2", encode)(sample.hr)
    assert len(calls) == 2


@pytest.mark.parametrize("left", [0, 1000])
def test_a_damaged_embedding_on_disk_is_made_anew(
    tmp_path: Path, sample: Sample, embedding: Embedding, left: int
) -> None:
    cache = EmbeddingCache(tmp_path, "model:1", lambda views: [embedding])
    cache.fill([sample.hr])
    path = cache.path(sample.hr)
    path.write_bytes(path.read_bytes()[:left])
    torch.testing.assert_close(cache(sample.hr).embedding, embedding.embedding.half())
    torch.testing.assert_close(Embedding.from_bytes(path.read_bytes()).early, embedding.early.half())


def test_a_window_is_found_around_what_no_pixel_of_the_decoder_sees(sample: Sample) -> None:
    line = np.zeros((1024, 1024), bool)
    line[400, 200:700] = True
    assert not draws.low_resolution(line).any()
    window = window_around(replace(sample, mask=line), np.random.default_rng(0))
    rows, columns = window.pixels
    assert rows.start <= 100 < rows.stop
    assert columns.start <= 50
    assert columns.stop > 174


def test_a_window_holds_the_object(sample: Sample) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        window = window_around(sample, rng)
        assert sample.mask[window.pixels].sum() == sample.mask.sum()


def test_held_out_groups_do_not_move_when_data_are_added() -> None:
    groups = {f"set/{number}" for number in range(40)}
    held = held_out_groups(groups, ["set/3"], 0.3, seed=1)
    more = held_out_groups({*groups, "other/1", "other/2"}, ["set/3"], 0.3, seed=1)
    assert "set/3" in held
    assert more - {"other/1", "other/2"} == held
    assert 4 < len(held) < 22
    assert held_out_groups(groups, ["set"], 0.0, seed=0) == groups
    with pytest.raises(ValueError, match="nothing is called glas"):
        held_out_groups(groups, ["glas"], 0.0, seed=0)


def test_a_set_is_held_out_by_its_name_where_its_patients_have_a_slash_in_theirs() -> None:
    assert held_out_groups({"glas/a/b", "camelyon/all"}, ["glas"], 0.0, seed=0) == {"glas/a/b"}


def test_boxes_are_in_the_index_frame_and_noise_is_bounded() -> None:
    mask = np.zeros((256, 256), bool)
    mask[100:150, 40:60] = True
    box = draws.tight_box(mask)
    assert box == (39.5, 99.5, 59.5, 149.5)
    rng = np.random.default_rng(0)
    for _ in range(50):
        x0, y0, x1, y1 = draws.noisy_box(box, 0.2, rng)
        assert 16 <= x1 - x0 <= 24
        assert 40 <= y1 - y0 <= 60
        assert abs((x0 + x1) / 2 - 49.5) <= 2
        assert abs((y0 + y1) / 2 - 124.5) <= 5


def test_points_are_drawn_on_the_object_and_beside_it_within_half_of_its_sides() -> None:
    mask = np.zeros((256, 256), bool)
    mask[100:150, 40:60] = True
    found = draws.places(mask)
    assert len(found.inside) == 50 * 20
    assert mask[found.inside[:, 1], found.inside[:, 0]].all()
    assert not mask[found.beside[:, 1], found.beside[:, 0]].any()
    assert found.beside.min(axis=0).tolist() == pytest.approx([29.5, 74.5], abs=0.5)
    assert found.beside.max(axis=0).tolist() == [69, 174]
    rng = np.random.default_rng(0)
    assert len(set(draws.some(found.inside, 3, rng))) == 3
    assert len(draws.some(found.inside[:2], 3, rng)) == 2


def test_a_mask_in_the_decoders_pixels_holds_those_that_are_covered_by_half() -> None:
    mask = np.zeros((512, 512), bool)
    mask[0, :2] = mask[10, 20] = True
    assert np.argwhere(draws.low_resolution(mask)).tolist() == [[0, 0]]


def test_the_next_click_lies_in_the_largest_error() -> None:
    truth = np.zeros((64, 64), bool)
    truth[10:30, 10:30] = True
    answer = truth.copy()
    answer[40:60, 40:64] = True
    answer[12:15, 12:15] = False
    place, label = draws.next_click(truth, answer) or ((0.0, 0.0), 1)
    assert label == 0
    assert 47 <= place[1] <= 52
    assert draws.next_click(truth, answer & (np.arange(64)[:, None] < 40)) == ((13.0, 13.0), 1)
    assert draws.next_click(truth, truth) is None


def test_points_get_a_box_that_shrinks_towards_their_extent() -> None:
    lone = with_point_box(Prompt(points=((100.0, 50.0),), labels=(1,)), (256, 256))
    assert (lone.box, lone.points) == ((36.0, -14.0, 164.0, 114.0), ())
    two = with_point_box(Prompt(points=((60.0, 100.0), (140.0, 120.0)), labels=(1, 1)), (256, 256))
    assert two.box is not None
    assert two.box[0::2] == pytest.approx((100 - 110, 100 + 110))


def test_negative_points_cut_the_box_of_clicks_and_stay_where_it_cannot_be_cut() -> None:
    points = ((100.0, 100.0), (140.0, 140.0), (170.0, 120.0), (120.0, 120.0))
    prompt = with_point_box(Prompt(points=points, labels=(1, 1, 0, 0)), (256, 256))
    assert prompt.box is not None
    assert prompt.box[2] == 155.0
    assert (prompt.points, prompt.labels) == (((120.0, 120.0),), (0,))


@pytest.mark.parametrize(
    ("negative", "side", "cut"),
    [((80.0, 120.0), 0, 90.0), ((120.0, 80.0), 1, 90.0), ((160.0, 120.0), 2, 150.0), ((120.0, 160.0), 3, 150.0)],
)
def test_the_box_of_clicks_ends_halfway_to_a_negative_point_on_any_side(
    negative: tuple[float, float], side: int, cut: float
) -> None:
    clicks = Prompt(points=((100.0, 100.0), (140.0, 140.0)), labels=(1, 1))
    whole = with_point_box(clicks, (256, 256)).box
    box = with_point_box(Prompt(points=(*clicks.points, negative), labels=(1, 1, 0)), (256, 256)).box
    assert whole is not None
    assert box == (*whole[:side], cut, *whole[side + 1 :])


@pytest.mark.parametrize("beside", [(60.0, 50.0), (60.0, 230.0), (2.0, 160.0), (200.0, 160.0)])
def test_negative_points_beside_the_box_of_clicks_change_nothing(beside: tuple[float, float]) -> None:
    clicks = Prompt(points=((40.0, 140.0), (80.0, 180.0)), labels=(1, 1))
    prompt = Prompt(points=(*clicks.points, beside), labels=(1, 1, 0))
    read = with_point_box(prompt, (256, 256))
    assert (read.box, read.points) == (with_point_box(clicks, (256, 256)).box, ())


def test_negative_points_alone_suggest_no_box() -> None:
    prompt = Prompt(points=((9.0, 9.0),), labels=(0,), mask_hr=np.ones((256, 256), np.float32))
    assert with_point_box(prompt, (256, 256)) is prompt


def test_several_clicks_may_be_wider_where_their_box_takes_more_than_half_of_the_view() -> None:
    assert may_be_wider(0.0, 1)
    assert not may_be_wider(0.18, 2)
    assert may_be_wider(0.19, 2)
    assert not may_be_wider(0.36, 10)
    assert may_be_wider(0.38, 10)


def test_a_given_box_is_widened_to_hold_clicks_on_the_object() -> None:
    given = Prompt(box=(50.0, 50.0, 90.0, 90.0), points=((100.0, 60.0), (70.0, 70.0)), labels=(1, 0))
    assert with_point_box(given, (256, 256)).box == (50.0, 50.0, 100.0, 90.0)
    only = Prompt(box=(50.0, 50.0, 90.0, 90.0))
    assert with_point_box(only, (256, 256)) is only


def test_one_click_is_read_at_two_sizes_and_several_clicks_at_one() -> None:
    click = Prompt(points=((100.0, 100.0), (10.0, 10.0)), labels=(1, 0))
    sides = [read.box[2] - read.box[0] for read in readings(click, (256, 256), 3.5, 0.5) if read.box is not None]
    assert sides == pytest.approx([179.2, 96])
    wider = [
        read.box[2] - read.box[0] for read in readings(replace(click, wider=True), (256, 256), 3.5, 0.5) if read.box
    ]
    assert wider == pytest.approx([128, 64])
    clicks = Prompt(points=((100.0, 100.0), (140.0, 120.0)), labels=(1, 1))
    assert len(readings(clicks, (256, 256), 3.5, 0.5)) == 1
    box = Prompt(box=(1.0, 2.0, 30.0, 40.0))
    assert readings(box, (256, 256), 3.5, 0.5) == [box]


def test_a_click_after_an_answer_starts_from_the_box_of_that_answer() -> None:
    mask = np.full((256, 256), -5.0, np.float32)
    mask[20:61, 30:81] = 5.0
    mask[200:220, 200:220] = 5.0
    missed = Prompt(points=((100.0, 80.0), (180.0, 90.0)), labels=(1, 1), mask_hr=mask)
    wider = with_point_box(missed, (512, 512))
    assert (wider.box, wider.mask_hr) == ((59.5, 39.5, 180.0, 121.5), None)
    beside = Prompt(points=((100.0, 80.0), (140.0, 80.0)), labels=(1, 0), mask_hr=mask)
    assert [read.box for read in readings(beside, (512, 512), 3.5, 0.5)] == [(59.5, 39.5, 120.0, 121.5)]
    elsewhere = Prompt(points=((400.0, 20.0),), labels=(1,))
    assert with_point_box(replace(elsewhere, mask_hr=mask), (512, 512)).box == with_point_box(elsewhere, (512, 512)).box


@pytest.mark.parametrize(
    ("x", "y", "found"),
    [
        (60, 40, True),
        (161, 121, True),
        (59, 80, False),
        (162, 80, False),
        (100, 39, False),
        (100, 122, False),
    ],
)
def test_an_earlier_answer_lies_under_every_pixel_of_the_view_that_it_covers(x: int, y: int, found: bool) -> None:
    mask = np.full((256, 256), -5.0, np.float32)
    mask[20:61, 30:81] = 5.0
    click = Prompt(points=((float(x), float(y)),), labels=(1,))
    box = with_point_box(replace(click, mask_hr=mask), (512, 512)).box
    assert box == ((59.5, 39.5, 161.5, 121.5) if found else with_point_box(click, (512, 512)).box)


def test_an_answer_gives_clicks_the_box_of_the_pieces_they_lie_on() -> None:
    clicks = Prompt(points=((20.0, 30.0), (25.0, 33.0)), labels=(1, 1))
    (read,) = readings(clicks, (256, 256), 3.5, 0.5)
    answer = np.zeros((256, 256), bool)
    answer[28:40, 15:31] = True
    answer[200:220, 200:220] = True
    second = reread(clicks, read, answer)
    assert second is not None
    assert second.box == (14.5, 27.5, 30.5, 39.5)
    one = Prompt(points=clicks.points[:1], labels=(1,))
    assert [again.box for size in readings(one, (256, 256), 3.5, 0.5) if (again := reread(one, size, answer))] == [
        second.box,
        second.box,
    ]
    missed = Prompt(points=(*clicks.points, (60.0, 33.0)), labels=(1, 1, 1))
    wider = reread(missed, read, answer)
    assert wider is not None
    assert wider.box == (14.5, 27.5, 60.0, 39.5), "a click that the answer missed is not given up"
    assert reread(clicks, read, np.zeros_like(answer)) is None
    assert reread(Prompt(box=(1.0, 2.0, 3.0, 4.0)), read, answer) is None


def test_a_set_trained_further_may_keep_a_part_of_what_it_learned() -> None:
    start, end = {"hr.a": torch.tensor([1.0, 2.0])}, {"hr.a": torch.tensor([3.0, -2.0])}
    assert part_of_the_way(start, end, 0.25)["hr.a"].tolist() == [1.5, 1.0]
    assert part_of_the_way(start, end, 1.0)["hr.a"].tolist() == [3.0, -2.0]


def test_a_recipe_takes_changes_by_name() -> None:
    recipe = Recipe.from_settings(["steps=7", "branches=hr", "boxes=0.5"])
    assert (recipe.steps, recipe.branches, recipe.boxes) == (7, "hr", 0.5)
    with pytest.raises(ValueError, match="a recipe has no 'step'"):
        Recipe.from_settings(["step=7"])
    further = Recipe.from_settings(["steps=7"], further=True)
    assert (further.steps, further.branches) == (7, "hr")
    assert further.learning_rate < recipe.learning_rate
    assert further.kept < recipe.kept


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("branches=HR", "branches is one of hr, lr, both, not HR"),
        ("kept=9", "kept is between 0 and 1, not 9"),
        ("learning_rate=nan", "learning_rate is between 0 and 1, not nan"),
        ("steps=-3", "steps is at least 0, not -3"),
        ("steps=abc", "steps is a whole number, not 'abc'"),
        ("clip=0", "clip is above 0, not 0"),
    ],
)
def test_a_recipe_names_what_is_not_as_it_should_be(setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipe.from_settings([setting])


@pytest.fixture(scope="module")
def further() -> AdapterWeights:
    state = dict(Adapter(8).state_dict())
    metadata = {"data": "glas/1, glas/10; from first (sha256 12): camelyon/all", "licence": "research"}
    return AdapterWeights("second", "ab" * 32, metadata, state, state)


def test_a_file_says_what_it_went_on_from(further: AdapterWeights) -> None:
    assert data_text(["set/b", "set/a", "set/b"], None) == "set/a, set/b"
    told = f"set/a; from second (sha256 {'ab' * 32}): {further.metadata['data']}"
    assert data_text(["set/a"], further) == told
    assert [licence_text(given, None) for given in ("CC0-1.0", None)] == ["CC0-1.0", "not stated"]
    licences = [licence_text(given, further) for given in (None, "research", "CC0-1.0")]
    assert licences == ["research", "research", "CC0-1.0; from second: research"]


def test_groups_are_found_in_what_a_file_says_of_its_data(further: AdapterWeights) -> None:
    told = data_text(["set/a, the first", "set/b"], further)
    seen = ["camelyon/all", "glas/1", "glas/10", "set/a, the first", "set/b"]
    assert groups_in(told, [*seen, "glas/0", "glas/100", "set/a, the", "las/1"]) == seen


def test_copies_change_views_and_masks_alike(sample: Sample) -> None:
    rng = np.random.default_rng(2)
    coloured = replace(sample, hr=np.where(sample.mask[..., None], np.uint8([120, 60, 140]), np.uint8(255)))
    coloured = replace(coloured, lr=np.where(sample.lr_mask[..., None], np.uint8([120, 60, 140]), np.uint8(255)))
    copies = changed_copies([coloured], 12, seed=int(rng.integers(100)))
    assert copies[0] is coloured
    places, colours = set(), set()
    for copy in copies[1:]:
        assert ((copy.hr != 255).any(axis=2) == copy.mask).all(), (
            "white stays white, and the object is where it was put"
        )
        assert ((copy.lr != 255).any(axis=2) == copy.lr_mask).all()
        assert (copy.hr[copy.mask][0] == copy.lr[copy.lr_mask][0]).all(), "both views are stained alike"
        places.add(draws.tight_box(copy.mask))
        colours.add(tuple(copy.hr[copy.mask][0].tolist()))
    assert len(places) > 3
    assert len(colours) == 12


def test_a_corrected_prompt_is_the_click_that_the_present_answer_calls_for(
    tmp_path: Path, base: WsiSam, sample: Sample, embedding: Embedding
) -> None:
    recipe = replace(QUICK, boxes=0.0, corrected=1.0, branches="hr", prompts_per_sample=2)
    trainer = make_trainer(tmp_path, base, sample, embedding, recipe)
    rng = np.random.default_rng(5)
    drafts = trainer._drafts(sample, rng)
    for draft, corrected in zip(drafts, trainer._corrected(drafts, rng), strict=True):
        with torch.no_grad():
            (answer,) = trainer.decoder([replace(draft.query, window=WHOLE)])
        place, label = draws.next_click(sample.mask, (answer.logits > 0).numpy()) or ((0.0, 0.0), 1)
        assert corrected.user.points == (*draft.user.points, place)
        assert corrected.user.labels == (*draft.user.labels, label)
        assert corrected.query.prompt.box is not None


def test_prompts_of_any_length_and_window_are_answered_as_if_alone(
    random_network: WsiSam, random_adapters: Adapters, random_views: tuple[ViewFeatures, ViewFeatures]
) -> None:
    hr, lr = (Embedding(view.embedding, view.early, (256, 256)) for view in random_views)
    decoder = TrainingDecoder(random_network, random_adapters, CONFIG)
    box = Prompt(box=(60.0, 70.0, 180.0, 200.0))
    many = Prompt(points=tuple((float(x), 90.0) for x in range(20, 220, 15)), labels=(1,) * 14)
    queries = [Query(hr, lr, box, WHOLE), Query(lr, hr, many, Window(3, 4, 20)), Query(hr, None, many, WHOLE)]
    with torch.no_grad():
        for query, answer in zip(queries, decoder(queries), strict=True):
            torch.testing.assert_close(answer.logits, decoder([query])[0].logits, atol=1e-9, rtol=0)


def test_held_embeddings_are_made_once_for_each_array(sample: Sample, embedding: Embedding) -> None:
    calls = []

    def encode(views: Sequence[Pixels]) -> list[Embedding]:
        calls.append(len(views))
        return [embedding for _ in views]

    held = HeldEmbeddings(encode)
    other = sample.hr.copy()
    held.fill([sample.hr, other, sample.hr])
    assert held(sample.hr) is held(sample.hr)
    assert held(other).embedding.dtype == torch.float16
    assert calls == [2]
