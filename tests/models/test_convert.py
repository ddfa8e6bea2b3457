"""Official checkpoints become a model folder, whole or not at all."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import TESTS

from flashvideo_ray.models import FlashVideoPreviewPipeline, FlashVideoRefinePipeline, FlashVideoTransformer3DModel
from flashvideo_ray.models.convert import ConversionError, convert

GOLDEN = TESTS / "golden"
T5 = str(GOLDEN / "t5")
STAGE = "model.diffusion_model."


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """A copy of the official-layout checkpoints, to be damaged."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("stage1.pt", "stage2.pt", "3d-vae.pt"):
        shutil.copyfile(GOLDEN / name, folder / name)
    return folder


def change(path: Path, edit) -> None:
    """Edit the weights of a checkpoint in place."""
    content = torch.load(path, weights_only=True)
    edit(next(iter(content.values())))
    torch.save(content, path)


def refused(checkpoints: Path, **options) -> str:
    """Convert, see it refused with nothing written, and return the message."""
    dest = checkpoints.parent / "model"
    before = sorted(checkpoints.parent.iterdir())
    with pytest.raises(ConversionError) as error:
        convert(checkpoints, dest, **{"text_encoder": T5, **options})
    assert sorted(checkpoints.parent.iterdir()) == before
    return str(error.value)


def test_a_converted_folder_loads_with_the_public_classes(tmp_path):
    result = convert(GOLDEN, tmp_path / "model", text_encoder=T5, verify=True)
    assert result.verified
    assert result.parameters["preview"] == 533376
    preview = FlashVideoPreviewPipeline.from_pretrained(tmp_path / "model" / "preview", dtype=torch.bfloat16)
    refine = FlashVideoRefinePipeline.from_pretrained(tmp_path / "model" / "refine", dtype=torch.bfloat16)
    assert preview.transformer.config.num_attention_heads == 2
    assert preview.vae.config.scaling_factor == 0.7
    assert refine.vae.config.scaling_factor == 1.15258426
    assert refine.text_encoder is None
    assert (preview.config.height, preview.config.width, preview.config.num_frames) == (256, 480, 49)
    assert (refine.config.height, refine.config.width, refine.config.noise_step) == (1072, 1920, 675)
    # Files are as readable as the folder they are in.
    assert all(file.stat().st_mode & 0o044 == 0o044 for file in (tmp_path / "model").rglob("*") if file.is_file())


def test_weights_are_rounded_once_to_the_dtype_asked_for(tmp_path):
    for dtype in ("float32", "bfloat16"):
        convert(GOLDEN, tmp_path / dtype, text_encoder=T5, dtype=dtype)
    file = "preview/transformer/diffusion_pytorch_model.safetensors"
    exact, rounded = load_file(tmp_path / "float32" / file), load_file(tmp_path / "bfloat16" / file)
    assert all(torch.equal(tensor.bfloat16(), rounded[name]) for name, tensor in exact.items())


def test_saved_again_it_computes_the_same(tmp_path):
    convert(GOLDEN, tmp_path / "model", text_encoder=T5, dtype="float32")
    first = FlashVideoTransformer3DModel.from_pretrained(tmp_path / "model" / "refine" / "transformer")
    first.save_pretrained(tmp_path / "again")
    second = FlashVideoTransformer3DModel.from_pretrained(tmp_path / "again")
    video, text, step = torch.randn(1, 3, 16, 4, 6), torch.randn(1, 10, 32), torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(first(video, text, step, 675).sample, second(video, text, step, 675).sample)


def test_large_files_are_written_in_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("flashvideo_ray.models.convert.SHARD_BYTES", 300_000)
    convert(GOLDEN, tmp_path / "model", text_encoder=T5, verify=True)
    folder = tmp_path / "model" / "preview" / "transformer"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert max(shard.stat().st_size for shard in shards) < 400_000
    FlashVideoTransformer3DModel.from_pretrained(folder)


def test_weights_that_were_merged_already_are_taken_as_they_are(checkpoints):
    def merge(tensors):
        for key in [key for key in tensors if ".original." in key]:
            tensors[key.replace(".original", "")] = tensors.pop(key)
        for key in [key for key in tensors if ".matrix_" in key]:
            del tensors[key]

    change(checkpoints / "stage1.pt", merge)
    convert(checkpoints, checkpoints.parent / "model", text_encoder=T5)


@pytest.mark.parametrize("file", ["stage1.pt", "stage2.pt", "3d-vae.pt"])
def test_a_missing_key_is_named(checkpoints, file):
    names = []

    def remove(tensors):
        names.append([key for key in tensors if key.endswith("bias")][7])
        del tensors[names[0]]

    change(checkpoints / file, remove)
    message = refused(checkpoints)
    assert file in message
    assert f"missing keys: {names[0].removeprefix(STAGE)}" in message


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("stage1.pt", STAGE + "transformer.layers.0.attention.query_key_value.matrix_A.1"),
        ("stage2.pt", STAGE + "ref_step_time_embedding.2.weight"),
        ("stage2.pt", STAGE + "mixins.patch_embed.proj.weight"),
        ("3d-vae.pt", "decoder.conv_in.conv.weight"),
        ("3d-vae.pt", "encoder.down.1.block.0.conv1.conv.weight"),
    ],
)
def test_a_renamed_key_is_missing_and_unknown(checkpoints, file, key):
    change(checkpoints / file, lambda tensors: tensors.update({key + "_old": tensors.pop(key)}))
    message = refused(checkpoints)
    assert f"missing keys: {key.removeprefix(STAGE)}" in message
    assert f"unknown keys: {key.removeprefix(STAGE)}_old" in message


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("stage1.pt", STAGE + "transformer.layers.1.mlp.extra.weight"),
        ("stage1.pt", STAGE + "time_size_embedding.0.weight"),
        ("stage2.pt", "optimizer.state"),
        ("3d-vae.pt", "encoder.extra"),
    ],
)
def test_a_key_that_nobody_reads_is_named(checkpoints, file, key):
    change(checkpoints / file, lambda tensors: tensors.update({key: torch.zeros(2)}))
    message = refused(checkpoints)
    assert file in message
    assert f"unknown keys: {key.removeprefix(STAGE)}" in message


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("stage1.pt", STAGE + "transformer.layers.1.attention.dense.original.weight"),
        ("stage1.pt", STAGE + "transformer.layers.0.attention.query_key_value.matrix_B.2"),
        ("stage2.pt", STAGE + "transformer.layers.2.attention.query_key_value.bias"),
        ("3d-vae.pt", "decoder.mid.block_1.conv1.conv.weight"),
    ],
)
def test_a_wrong_shape_is_named_with_its_key(checkpoints, file, key):
    change(checkpoints / file, lambda tensors: tensors.update({key: torch.cat([tensors[key], tensors[key][:1]])}))
    message = refused(checkpoints)
    assert f"{file}: " in message
    assert key.removeprefix(STAGE) in message


def test_a_tensor_of_whole_numbers_is_refused(checkpoints):
    key = STAGE + "transformer.final_layernorm.weight"
    change(checkpoints / "stage2.pt", lambda tensors: tensors.update({key: tensors[key].int()}))
    assert "transformer.final_layernorm.weight is torch.int32" in refused(checkpoints)


class Code:
    def __reduce__(self):
        return os.mkdir, (str(Path(__file__).parent / "was_run"),)


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "code", "list", "words"])
def test_a_file_that_is_not_weights_is_refused_and_never_run(checkpoints, kind):
    path = checkpoints / "stage2.pt"
    if kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "code":
        path.write_bytes(pickle.dumps({"module": Code()}))
    elif kind == "list":
        torch.save([torch.zeros(2)], path)
    else:
        torch.save({"module": {"weight": "none"}}, path)
    assert refused(checkpoints).startswith("stage2.pt: ")
    assert not (Path(__file__).parent / "was_run").exists()


def test_all_files_are_checked_before_the_message(checkpoints):
    for file in ("stage1.pt", "3d-vae.pt"):
        change(checkpoints / file, lambda tensors: tensors.pop(next(iter(tensors))))
    message = refused(checkpoints)
    assert "stage1.pt: " in message
    assert "3d-vae.pt: " in message


def test_a_missing_file_is_named(checkpoints):
    (checkpoints / "3d-vae.pt").unlink()
    assert "3d-vae.pt" in refused(checkpoints)


def test_the_stages_cannot_be_exchanged(checkpoints):
    (checkpoints / "stage1.pt").rename(checkpoints / "other")
    (checkpoints / "stage2.pt").rename(checkpoints / "stage1.pt")
    (checkpoints / "other").rename(checkpoints / "stage2.pt")
    message = refused(checkpoints)
    assert "unknown keys: ref_step_time_embedding.0.bias" in message
    assert "missing keys: ref_step_time_embedding.0.bias" in message


def test_a_folder_with_something_in_it_is_left_alone(checkpoints):
    dest = checkpoints.parent / "model"
    dest.mkdir()
    (dest / "mine").write_text("keep")
    assert "exists" in refused(checkpoints)
    assert (dest / "mine").read_text() == "keep"


def test_the_text_encoder_must_fit(checkpoints, tmp_path):
    from transformers import T5Config, T5EncoderModel

    other = tmp_path / "t5"
    T5EncoderModel(T5Config(vocab_size=20, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        other
    )
    assert "32 channels" in refused(checkpoints, text_encoder=str(other))
    assert "no T5 encoder" in refused(checkpoints, text_encoder=str(tmp_path / "nowhere"))
    assert "dtype" in refused(checkpoints, dtype="int8")
