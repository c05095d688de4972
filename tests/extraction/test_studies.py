"""The studies' transforms in an extraction, and models that were built for another input size."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.mlp_mixer import MlpMixer
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision import transforms as tv

import featstore
from featstore.errors import FeatStoreError
from featstore.keys import BNMode, FeatureKey
from featstore.store import Store

from .conftest import write_folder

RESNET = "file:none#arch=tiny-resnet"
VIT = "file:none#arch=tiny-vit"
BICUBIC = tv.InterpolationMode.BICUBIC
PIPELINES = {
    "marks": [tv.Resize(256), tv.CenterCrop(224)],
    "ericsson": [tv.Resize(224, BICUBIC), tv.CenterCrop(224)],
    "ericsson-fewshot": [tv.Resize((257, 257)), tv.CenterCrop(224)],
}
NORMALISE = [tv.ToTensor(), tv.Normalize((0.5,) * 3, (0.5,) * 3)]  # the tiny models' own


@pytest.fixture
def few(tmp_path):
    return write_folder(tmp_path / "photos", per_class=1, classes=("ant", "bee"))


def extract(models, root, store, **options):
    options = {"weights": "random", "dtype": "float32", "num_workers": 0} | options
    if not isinstance(models, list):
        options["weights"] = "pretrained"
    return featstore.extract(models, [f"folder:{root}"], store=store, **options)


def split_of(store, model, root, name="test"):
    return Store(store).open(FeatureKey(model, f"folder:{root}", BNMode.EVAL))[name]


def expected_rows(module, split, root, pipeline):
    transform = tv.Compose([*pipeline, *NORMALISE])
    with torch.inference_mode():
        return np.concatenate(
            [
                module(transform(Image.open(root / str(name)).convert("RGB"))[None]).numpy()
                for name in split.array("sample_id")
            ]
        )


@pytest.mark.parametrize("study", PIPELINES)
def test_embeddings_are_those_of_torchvisions_pipeline(few, tmp_path, study):
    extract([RESNET], f"{few}@{study}", tmp_path / "s.zarr")
    split = split_of(tmp_path / "s.zarr", f"{RESNET}~random0", f"{few}@{study}")
    module = featstore.create_backbone("tiny-resnet", seed=0).eval()
    expected = expected_rows(module, split, few, PIPELINES[study])
    np.testing.assert_allclose(split.chunk(0), expected, atol=2e-5)
    assert split.recipe.fields["transform"]["study"] == study


def test_a_catalogued_square_is_made_first(few, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATSTORE_HOME", str(tmp_path))
    (tmp_path / "catalogue.toml").write_text(
        f'[datasets.birds]\nreader = "folder"\npath = "{few}"\nsquare = "pad"\n'
    )
    featstore.extract([RESNET], ["birds@marks"], store=tmp_path / "s.zarr", weights="random",
                      dtype="float32", num_workers=0)  # fmt: skip
    key = FeatureKey(f"{RESNET}~random0", "birds@marks", BNMode.EVAL)
    split = Store(tmp_path / "s.zarr").open(key)["test"]
    module = featstore.create_backbone("tiny-resnet", seed=0).eval()
    pipeline = [tv.CenterCrop(48), *PIPELINES["marks"]]  # the images are 48 x 40
    np.testing.assert_allclose(
        split.chunk(0), expected_rows(module, split, few, pipeline), atol=2e-5
    )


def test_models_of_every_input_share_one_pass_under_a_study(few, tmp_path):
    models = [RESNET, "timm:test_vit.r160_in1k", "timm:test_efficientnet.r160_in1k"]
    done = extract(models, f"{few}@ericsson", tmp_path / "s.zarr")
    assert (done.images, done.filled) == (4, 6)
    own = extract(models, few, tmp_path / "s.zarr")
    assert (own.images, own.filled) == (8, 6)  # a pass of 32 pixels, and one of 160


def test_a_transformer_of_another_size_gets_its_positions_resampled(few, tmp_path):
    extract([VIT], f"{few}@ericsson", tmp_path / "s.zarr")
    extract([VIT], few, tmp_path / "s.zarr")
    small = featstore.create_backbone("tiny-vit", seed=0)
    large = VisionTransformer(img_size=224, patch_size=4, embed_dim=64, depth=4, num_heads=4,
                              global_pool="token", num_classes=0).eval()  # fmt: skip
    state = small.state_dict()
    grid = state["pos_embed"][:, 1:].reshape(1, 8, 8, 64).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, (56, 56), mode="bicubic", antialias=True)
    state["pos_embed"] = torch.cat(
        [state["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, 64)], 1
    )
    large.load_state_dict(state)
    there, own = (
        split_of(tmp_path / "s.zarr", f"{VIT}~random0", r) for r in (f"{few}@ericsson", few)
    )
    expected = expected_rows(large, there, few, PIPELINES["ericsson"])
    np.testing.assert_allclose(there.chunk(0), expected, atol=2e-5)
    assert there.recipe.fields["weights"] == own.recipe.fields["weights"]
    assert there.recipe.fields["transform"]["input_size"] == [3, 224, 224]


def test_a_model_of_the_right_size_is_left_as_it_is(few, tmp_path):
    """In one call with a study, whose copy must not reach the model's own transform."""
    both = [f"folder:{few}@ericsson", f"folder:{few}"]
    featstore.extract([VIT], both, store=tmp_path / "both.zarr", weights="random",
                      dtype="float32", num_workers=0)  # fmt: skip
    extract([VIT], few, tmp_path / "own.zarr")
    one, other = (
        split_of(tmp_path / f"{name}.zarr", f"{VIT}~random0", few) for name in ("both", "own")
    )
    np.testing.assert_array_equal(one.chunk(0), other.chunk(0))


SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
FAMILIES = {
    "vit": lambda: VisionTransformer(img_size=96, patch_size=16, **SMALL),
    "dynamic vit": lambda: VisionTransformer(img_size=96, dynamic_img_size=True, **SMALL),
    "vit of 14": lambda: VisionTransformer(img_size=518, patch_size=14, **SMALL),
    "eva": lambda: Eva(img_size=96, use_rot_pos_emb=True, **SMALL),
    "beit": lambda: Beit(img_size=96, use_abs_pos_emb=False, use_rel_pos_bias=True, **SMALL),
    "swin": lambda: SwinTransformer(
        img_size=128, window_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 2), num_classes=0
    ),
}


# Both are timm's own, raised while it resamples tables of relative positions.
@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing")
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_of_other_sizes_take_a_studys_pixels(few, tmp_path, family):
    module = FAMILIES[family]()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    extract({"mine": module}, f"{few}@marks", tmp_path / "s.zarr")
    split = split_of(tmp_path / "s.zarr", "mine", f"{few}@marks")
    assert np.isfinite(split.chunk(0)).all()
    assert split.shape[1] == module.num_features
    after = module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_model_that_insists_on_its_size_is_refused_by_name_and_sizes(few, tmp_path):
    module = MlpMixer(img_size=64, patch_size=16, embed_dim=16, num_blocks=1, num_classes=0)
    with pytest.raises(
        FeatStoreError,
        match=r"^mine \(MlpMixer\) takes images of 64 x 64 pixels, and the transform gives "
        r"224 x 224. Embed the dataset without its @TRANSFORM, or leave the model out$",
    ):
        extract({"mine": module}, f"{few}@marks", tmp_path / "s.zarr")
    extract({"mine": module}, few, tmp_path / "s.zarr")
    assert split_of(tmp_path / "s.zarr", "mine", few).recipe.fields["transform"]["input_size"] == [
        3, 64, 64,
    ]  # fmt: skip
