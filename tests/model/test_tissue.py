"""Sets of adapters beside each other: which views go to which, and that each answers as it would alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from wsisam_model.adapters import Adapter
from wsisam_model.checkpoints import AdapterWeights, BaseWeights, load_adapters, load_base_weights, save_adapters
from wsisam_model.config import model_config
from wsisam_model.decoder_batch import DecodeRequest
from wsisam_model.embedding import Embedding
from wsisam_model.errors import CheckpointError, UnknownModelError
from wsisam_model.predictor import Predictor
from wsisam_model.prompts import Prompt
from wsisam_model.registry import base_weights_path
from wsisam_model.tissue import MAX_VIEWS, MIN_CELLS, NEAREST, TissueChoice, look_of, looks_of, white_cell, white_view

CONFIG = model_config("lite_medsam")
C = CONFIG.early_channels


def looks_around(place: float, count: int = 40, *, spread: float = 1.0, seed: int = 0) -> Tensor:
    """Looks that differ by `spread` in each number, around `place` in all of them."""
    generator = torch.Generator().manual_seed(seed)
    return place + spread * torch.randn(count, 2 * C, generator=generator)


def embedding_of(cells: Tensor, view_size: tuple[int, int] = (256, 256)) -> Embedding:
    return Embedding(torch.zeros(256, 64, 64), cells, view_size)


def test_a_look_goes_to_the_set_that_knows_it_and_a_strange_one_to_none() -> None:
    choose = TissueChoice({"kidney": looks_around(0), "liver": looks_around(5)}, looks_around(-5))
    asked = {place: [choose(look) for look in looks_around(place, 20, seed=1)] for place in (0, 5, -5, 20)}
    assert set(asked[0]) == {"kidney"}
    assert set(asked[5]) == {"liver"}
    assert set(asked[-5]) == {None}, "the set for all tissue knows these better"
    assert set(asked[20]) == {None}, "nobody knows these"
    assert choose(None) is None


def test_a_look_within_reach_stays_with_the_set_for_all_tissue_where_that_one_is_nearer() -> None:
    look = looks_around(0, 1, seed=1)[0]
    assert TissueChoice({"kidney": looks_around(0)})(look) == "kidney"
    assert TissueChoice({"kidney": looks_around(0)}, look + looks_around(0, 40, spread=0.1))(look) is None


def test_a_look_is_of_the_tissue_alone() -> None:
    """Neither glass nor the padding of a view that is no square plays a part."""
    generator = torch.Generator().manual_seed(2)
    white, tissue = torch.ones(C), 5 + torch.randn(C, 64, 64, generator=generator)
    full = look_of(embedding_of(tissue), white, CONFIG)
    assert full is not None
    torch.testing.assert_close(full, torch.cat((tissue.flatten(1).mean(1), tissue.flatten(1).std(1))))

    with_glass = tissue.clone()
    with_glass[:, 20:] = white[:, None, None]
    wide = embedding_of(tissue, (256 * 20 // 64, 256))
    for found in (look_of(embedding_of(with_glass), white, CONFIG), look_of(wide, white, CONFIG)):
        assert found is not None
        part = tissue[:, :20].flatten(1)
        torch.testing.assert_close(found, torch.cat((part.mean(1), part.std(1))))

    glass = white[:, None, None].expand(-1, 64, 64).clone()
    glass.view(C, -1)[:, : MIN_CELLS - 1] = 9
    assert look_of(embedding_of(glass), white, CONFIG) is None


def test_the_looks_of_a_set_come_back_with_its_file_and_wrong_ones_are_refused(
    tmp_path: Path, base: BaseWeights
) -> None:
    about = {"model": CONFIG.name, "base_sha256": base.sha256, "data": "none", "licence": "CC0-1.0"}
    state, looks, path = weights("kidney").state(), looks_around(0), tmp_path / "kidney.safetensors"
    save_adapters(path, state, looks=looks, **about)
    loaded = load_adapters(path, CONFIG, base)
    assert loaded.looks is not None
    assert torch.equal(loaded.looks, looks)
    assert loaded.state().keys() == state.keys()
    for wrong in (looks[:NEAREST], looks[:, 1:], looks[0], looks.int(), looks_around(0, MAX_VIEWS + 1)):
        with pytest.raises(CheckpointError, match=r"tissue\.looks"):
            save_adapters(path, state, looks=wrong, **about)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    path.write_bytes(save({**state, "tissue.looks": looks.int()}, metadata=metadata))
    with pytest.raises(CheckpointError, match=r"kidney\.safetensors: tissue\.looks"):
        load_adapters(path, CONFIG, base)


def test_looks_are_those_of_the_views_that_show_tissue() -> None:
    views = [np.full((256, 256, 3), grey, np.uint8) for grey in range(10)]

    def embed(view: np.ndarray) -> Embedding:
        grey = 0 if view[-1, -1, 0] == 255 else int(view[0, 0, 0])  # the white view's, and the others'
        return embedding_of(torch.full((C, 64, 64), 1.0 if grey < 3 else 4.0 + grey))

    looks = looks_of(views, embed, CONFIG)
    assert looks is not None
    assert looks[:, 0].tolist() == [4.0 + grey for grey in range(3, 10)]
    assert looks_of(views[:5], embed, CONFIG) is None, "two views of tissue are too few to tell"


def test_a_view_that_shows_several_objects_counts_once() -> None:
    views = [np.full((256, 256, 3), grey, np.uint8) for grey in range(5)]

    def embed(view: np.ndarray) -> Embedding:
        white = view[-1, -1, 0] == 255
        return embedding_of(torch.full((C, 64, 64), 1.0 if white else 4.0 + int(view[0, 0, 0])))

    looks = looks_of([views[0], *views, views[0].copy(), views[0]], embed, CONFIG)
    assert looks is not None
    assert looks[:, 0].tolist() == [4.0, 5.0, 6.0, 7.0, 8.0]


def test_looks_that_are_all_alike_know_that_look_and_no_other() -> None:
    look = torch.ones(2 * C)
    choose = TissueChoice({"kidney": look.expand(5, -1)})
    assert (choose(look), choose(look + 0.1)) == ("kidney", None)


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    return load_base_weights(base_weights_path(CONFIG), CONFIG)


def weights(name: str, looks: Tensor | None = None, seed: int = 0) -> AdapterWeights:
    torch.manual_seed(seed)
    hr, lr = dict(Adapter(C).state_dict()), dict(Adapter(C).state_dict())
    for end in ("weight", "bias"):
        lr[f"hf_mlp.layers.2.{end}"] *= 0  # so that the wider view plays no part
    return AdapterWeights(name, name.encode().hex(), {}, hr, lr, looks=looks)


@pytest.fixture(scope="module")
def sets(base: BaseWeights) -> Mapping[str, AdapterWeights]:
    """One for all tissue, one that knows a tissue, one that does not say which."""
    plain = Predictor(CONFIG, base, device="cpu", engine="torch")
    white = white_cell(plain.encode([white_view(CONFIG)])[0])
    seen = [look_of(one, white, CONFIG) for one in plain.encode([tissue(seed) for seed in range(5)])]
    looks = torch.stack([look for look in seen if look is not None])
    return {"all": weights("all", seed=1), "kidney": weights("kidney", looks, 2), "liver": weights("liver", seed=3)}


def tissue(seed: int, level: int = 60) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 100, (64, 64, 3), dtype=np.uint8)
    return np.kron(level + noise, np.ones((4, 4, 1), np.uint8)).astype(np.uint8)


BOX = Prompt(box=(40.0, 50.0, 170.0, 200.0))
CLICK = Prompt(points=((100.0, 120.0),), labels=(1,))


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize(
    ("engine", "device"),
    [
        ("torch", "cpu"),
        ("openvino", "cpu"),
        pytest.param("cuda-graphs", "cuda", marks=[pytest.mark.gpu, needs_cuda]),
    ],
)
def test_every_set_answers_as_it_would_alone(
    base: BaseWeights, sets: Mapping[str, AdapterWeights], engine: str, device: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs the extra wsisam[fast]")
    names = ["all", "kidney"] if engine == "openvino" else ["all", "kidney", "liver"]  # each is converted
    own = [sets[name] for name in names[1:]]
    options = {"device": device, "engine": "auto" if device == "cuda" else engine, "precision": "float32"}
    together = Predictor(CONFIG, base, sets["all"], own=own, **options)
    assert (together.engine, together.warnings) == (engine, ())
    embeddings = dict(zip(("kidney", "all"), together.encode([tissue(9), 255 - tissue(9) // 8]), strict=True))
    views = {knows: together.prepare(embedding) for knows, embedding in embeddings.items()}
    for name in names:
        alone = Predictor(CONFIG, base, sets[name], **options)
        for knows, view in views.items():
            own_view = alone.prepare(embeddings[knows])
            expected = alone.decode([DecodeRequest(own_view, None, prompt) for prompt in (BOX, CLICK)])
            for called in [name, *([None] if name == knows else [])]:
                requests = [DecodeRequest(view, None, prompt, adapters=called) for prompt in (BOX, CLICK)]
                info = together.adapters_of(requests[0])
                assert info is not None
                assert info.name == name
                for ours, theirs in zip(together.decode(requests), expected, strict=True):
                    np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-3)
                    np.testing.assert_allclose(ours.predicted_iou, theirs.predicted_iou, atol=1e-4)
    frozen = DecodeRequest(views["kidney"], None, BOX, frozen=True)
    assert together.adapters_of(frozen) is None
    mixed = together.decode([frozen, DecodeRequest(views["kidney"], None, BOX), frozen])
    np.testing.assert_array_equal(mixed[0].logits, mixed[2].logits)
    assert np.abs(mixed[0].logits - mixed[1].logits).max() > 1


def test_a_set_that_is_not_here_is_unknown(base: BaseWeights, sets: Mapping[str, AdapterWeights]) -> None:
    predictor = Predictor(CONFIG, base, sets["all"], own=[sets["liver"]], device="cpu", engine="torch")
    view = predictor.prepare(predictor.encode([tissue(1)])[0])
    with pytest.raises(UnknownModelError, match="bone"):
        predictor.decode([DecodeRequest(view, None, BOX, adapters="bone")])


@pytest.mark.parametrize("names", [["all"], ["liver", "liver"], ["default"], ["none"]])
def test_sets_that_a_request_could_not_tell_apart_are_refused(base: BaseWeights, names: list[str]) -> None:
    with pytest.raises(CheckpointError, match="another name"):
        Predictor(CONFIG, base, weights("all"), own=[weights(name) for name in names], device="cpu", engine="torch")


def test_a_set_of_ones_own_needs_one_for_all_other_tissue(base: BaseWeights) -> None:
    with pytest.raises(CheckpointError, match="beside others"):
        Predictor(CONFIG, base, None, own=[weights("kidney")], device="cpu", engine="torch")


def test_where_a_further_decoder_cannot_be_compiled_torch_answers_and_says_so(
    base: BaseWeights, sets: Mapping[str, AdapterWeights], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    openvino_engine = pytest.importorskip("wsisam_model.engines.openvino_engine", reason="needs wsisam[fast]")
    monkeypatch.setattr(openvino_engine.OpenVinoEngine, "beside", fail)
    predictor = Predictor(CONFIG, base, sets["all"], own=[sets["liver"]], device="cpu", engine="openvino")
    assert [warning for warning in predictor.warnings if "no room" in warning] == list(predictor.warnings)
    view = predictor.prepare(predictor.encode([tissue(1)])[0])
    (answer,) = predictor.decode([DecodeRequest(view, None, BOX, adapters="liver")])
    assert np.isfinite(answer.logits).all()
