"""Pictures as people have them: other orders of their sizes, grey, transparent, depth, in files beside the parquet."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pizero.data.datasets.lerobot import LeRobotDataset
from pizero.data.datasets.meta.features import depth_cameras, picture_size
from pizero.data.datasets.meta.layout import BadEpisodeError
from pizero.data.frames import fingerprint
from pizero.types import UserError
from pizero.workflows.check import CheckConfig, check
from pizero.workflows.convert_dataset import convert_dataset

GOLDEN = Path(__file__).parents[1] / "golden/lerobot/datasets"
TOP = "observation.images.top"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """v2.1, images in the parquet files, 96 x 96."""
    return shutil.copytree(GOLDEN / "v21_png", tmp_path / "data")


def describe(root: Path, **values: Any) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][TOP] |= values
    (root / "meta/info.json").write_text(json.dumps(info))


def cells(root: Path, change: Callable[[int, int, bytes], Any], kind: pa.DataType | None = None) -> None:
    """Each cell of the camera becomes change(episode, frame, encoded image)."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        index = table.column_names.index(TOP)
        episode = table["episode_index"][0].as_py()
        new = [change(episode, frame, cell["bytes"]) for frame, cell in enumerate(table[TOP].to_pylist())]
        kind = kind or table.schema.field(index).type
        pq.write_table(table.set_column(index, pa.field(TOP, kind), pa.array(new, kind)), path)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def crop(data: bytes) -> Image.Image:
    """96 wide, 64 high."""
    return Image.open(io.BytesIO(data)).convert("RGB").crop((0, 0, 96, 64))


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("shape", "names", "size"),
    [
        ([3, 480, 640], ["channels", "height", "width"], (480, 640, 3)),
        ([3, 480, 640], ["Channel", "Height", "Width"], (480, 640, 3)),
        ([3, 480, 640], ["c", "h", "w"], (480, 640, 3)),
        ([640, 480, 3], ["width", "height", "channel"], (480, 640, 3)),
        ([640, 480, 3], ["W", "H", "C"], (480, 640, 3)),
        ([3, 480, 640], None, (480, 640, 3)),
        ([480, 640, 3], [], (480, 640, 3)),
        ([480, 640, 4], ["rgba"], (480, 640, 4)),
        ([1, 480, 640], None, (480, 640, 1)),
        ([480, 640], None, (480, 640, 1)),
        ([640, 480], ["width", "height"], (480, 640, 1)),
        ([480, 640, 7], None, None),
        ([480], None, None),
        (None, None, None),
    ],
)
def test_sizes_by_the_description(shape: Any, names: Any, size: Any) -> None:
    assert picture_size({"shape": shape, "names": names}) == size


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([3, 64, 96], ["channels", "height", "width"]),
        ([3, 64, 96], None),
        ([96, 64, 3], ["width", "height", "channels"]),
        ([64, 96, 3], ["height", "width", "channels"]),
        ([64, 96], None),
    ],
)
def test_channels_first_or_last(root: Path, shape: list[int], names: list[str] | None) -> None:
    cells(root, lambda episode, frame, data: {"bytes": encoded(crop(data)), "path": None})
    describe(root, shape=shape, names=names)
    dataset = LeRobotDataset(root)
    assert dataset.notes == []
    assert dataset.image_shape("top") == (64, 96)
    whole = LeRobotDataset(GOLDEN / "v21_png")
    np.testing.assert_array_equal(dataset.images("top", [5, 80]), whole.images("top", [5, 80])[:, :64])


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ([96, 64, 3], ["height", "width", "channels"]),
        ([3, 96, 64], None),
        ([480, 640, 3], ["height", "width", "channels"]),
        ([96, 64, 3], ["channels", "height", "width"]),
        ("wrong", None),
    ],
)
def test_pictures_of_another_size_than_said(root: Path, shape: Any, names: list[str] | None) -> None:
    cells(root, lambda episode, frame, data: {"bytes": encoded(crop(data)), "path": None})
    describe(root, shape=shape, names=names)
    dataset = LeRobotDataset(root)
    [note] = dataset.notes
    assert "camera 'top'" in note
    assert "the pictures are 64 high and 96 wide: the pictures count" in note
    assert dataset.images("top", [0]).shape == (1, 64, 96, 3)


def test_video_channels_first(tmp_path: Path) -> None:
    root = shutil.copytree(GOLDEN / "v30_av1", tmp_path / "data")
    describe(root, shape=[3, 96, 96], names=["c", "h", "w"])
    dataset = LeRobotDataset(root)
    assert dataset.notes == []
    np.testing.assert_array_equal(dataset.images("top", [3]), LeRobotDataset(GOLDEN / "v30_av1").images("top", [3]))
    describe(root, shape=[480, 640, 3], names=["height", "width", "channels"])
    assert "the pictures are 96 high and 96 wide" in LeRobotDataset(root).notes[0]


def test_episodes_of_two_sizes(root: Path) -> None:
    cells(root, lambda episode, frame, data: {"bytes": encoded(crop(data)) if episode == 2 else data, "path": None})
    dataset = LeRobotDataset(root)
    with pytest.raises(BadEpisodeError, match=r"episode 2, frame 12 of .* is 64x96, but the first .* 96x96") as refused:
        dataset.images("top", [0, 90])
    assert refused.value.episodes == (2,)


# ---------------------------------------------------------------- colours, depth


@pytest.mark.parametrize(
    ("mode", "note"),
    [("L", "is grey"), ("LA", "is grey"), ("RGBA", "transparency, is dropped"), ("P", None), ("RGB", None)],
)
def test_colours(root: Path, mode: str, note: str | None) -> None:
    def change(episode: int, frame: int, data: bytes) -> dict[str, Any]:
        return {"bytes": encoded(Image.open(io.BytesIO(data)).convert(mode)), "path": None}

    cells(root, change)
    dataset = LeRobotDataset(root)
    if note is None:
        assert dataset.notes == []
    else:
        assert [note in text for text in dataset.notes] == [True]
    [image] = dataset.images("top", [50])
    expected = LeRobotDataset(GOLDEN / "v21_png").images("top", [50])[0].astype(float)
    grey = expected.mean(axis=-1, keepdims=True) if mode[0] == "L" else expected
    assert image.shape == (96, 96, 3)
    assert abs(image.astype(float) - grey).mean() < (0.1 if mode.startswith("RGB") else 25)
    if mode[0] == "L":
        assert (image[..., :1] == image).all()


def test_check_notes_what_the_pictures_are(root: Path) -> None:
    cells(root, lambda episode, frame, data: {"bytes": encoded(crop(data).convert("L")), "path": None})
    describe(root, shape=[480, 640, 3])
    found = check(root, CheckConfig(horizon=5))["findings"]
    notes = [finding["evidence"] for finding in found if finding["check"] == "description"]
    assert ["is grey" in note for note in notes] == [True, False]
    assert "the pictures are 64 high and 96 wide" in notes[1]


def depth(form: str, kind: type) -> Callable[[int, int, bytes], dict[str, Any]]:
    image = Image.fromarray((1000 * np.ones((96, 96))).astype(kind))
    return lambda episode, frame, data: {"bytes": encoded(image, form), "path": None}


@pytest.mark.parametrize(
    ("form", "kind", "values"),
    [
        ("PNG", np.uint16, {"shape": [96, 96, 1]}),
        ("TIFF", np.float32, {"shape": [96, 96]}),
        ("TIFF", np.int32, {}),
        ("PNG", np.uint8, {"info": {"is_depth_map": True}}),
        ("PNG", np.uint8, {"video_info": {"video.is_depth_map": True}}),
    ],
)
def test_depth_is_left_out(root: Path, tmp_path: Path, form: str, kind: type, values: dict[str, Any]) -> None:
    """By its pictures alone, or as the description says."""
    cells(root, depth(form, kind))
    describe(root, **values)
    dataset = LeRobotDataset(root)
    assert dataset.cameras == ("wrist",)
    assert "camera 'top' is not used: it is a depth camera" in " ".join(dataset.notes)
    with pytest.raises(UserError, match="camera 'top' cannot be used: it is a depth camera"):
        dataset.images("top", [0])
    convert_dataset(root, tmp_path / "new")
    after = LeRobotDataset(tmp_path / "new")
    assert after.cameras == ("wrist",)
    assert TOP not in json.loads((tmp_path / "new/meta/info.json").read_text())["features"]


def test_depth_by_its_name() -> None:
    for key, shape, found in (
        ("observation.images.top_depth", [96, 96, 1], {"top_depth"}),
        ("observation.images.Depth", [96, 96], {"Depth"}),
        ("observation.depth", [1, 96, 96], {"observation.depth"}),
        ("observation.images.top_depth", [96, 96, 3], set()),  # depth in colours is a picture like another
        ("observation.images.top", [96, 96, 1], set()),  # grey
    ):
        assert set(depth_cameras({key: {"dtype": "image", "shape": shape}})) == found


def test_depth_is_never_cut_to_grey_levels(root: Path) -> None:
    """Where nobody looked before."""
    cells(root, lambda episode, frame, data: depth("PNG", np.uint16)(0, 0, b"") if frame == 7 else {"bytes": data})
    with pytest.raises(BadEpisodeError, match=r"frame 7 of 'observation.images.top' .*it is a depth image, mode I;16"):
        LeRobotDataset(root).images("top", [7])


# ---------------------------------------------------------------- beside the parquet


PLACES = {
    "relative": "images/{key}/episode_{episode:06d}/frame_{frame:06d}.png",
    "of the images": "{key}/episode_{episode:06d}/frame_{frame:06d}.png",
    "of another machine": "/home/somebody/data/images/{key}/episode_{episode:06d}/frame_{frame:06d}.png",
    "of Windows": "C:\\data\\images\\{key}\\episode_{episode:06d}\\frame_{frame:06d}.png",
    "none": None,
}


def beside(root: Path, place: str | None, kind: pa.DataType | None = None) -> None:
    """Images move out of the parquet, to where LeRobot v2.0 has them."""

    def move(episode: int, frame: int, data: bytes) -> Any:
        path = root / f"images/{TOP}/episode_{episode:06d}/frame_{frame:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        said = place and place.format(key=TOP, episode=episode, frame=frame)
        return said if kind is not None else {"bytes": None, "path": said}

    cells(root, move, kind)


def assert_equal_images(found: LeRobotDataset) -> None:
    frames = np.array([0, 39, 40, 100, 160])
    expected = LeRobotDataset(GOLDEN / "v21_png")
    np.testing.assert_array_equal(found.images("top", frames), expected.images("top", frames))
    np.testing.assert_array_equal(found.images("wrist", frames), expected.images("wrist", frames))


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("text", [False, True], ids=["struct", "text"])
def test_images_beside_the_parquet(root: Path, tmp_path: Path, name: str, text: bool) -> None:
    beside(root, PLACES[name], pa.string() if text else None)
    dataset = LeRobotDataset(root)
    assert dataset.notes == []
    assert_equal_images(dataset)
    first = root / "images" / TOP / "episode_000001/frame_000000.png"
    assert first in dataset.image_files(["top"])
    convert_dataset(root, tmp_path / "new")
    shutil.move(root, tmp_path / "elsewhere")
    assert_equal_images(LeRobotDataset(tmp_path / "new"))


def test_images_without_a_column(root: Path, tmp_path: Path) -> None:
    beside(root, None)
    for path in (root / "data").rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns([TOP]), path)
    assert_equal_images(LeRobotDataset(root))
    convert_dataset(root, tmp_path / "new")
    assert_equal_images(LeRobotDataset(tmp_path / "new"))


def test_a_changed_image_beside_the_parquet_is_decoded_again(root: Path) -> None:
    beside(root, PLACES["relative"])
    before = fingerprint(LeRobotDataset(root), ["top"], (32, 32), "openpi")
    path = root / "images" / TOP / "episode_000001/frame_000000.png"
    path.write_bytes(encoded(Image.new("RGB", (96, 96), "red")))
    assert fingerprint(LeRobotDataset(root), ["top"], (32, 32), "openpi") != before


@pytest.mark.parametrize("place", ["{outside}", "../outside.png", "images/../../outside.png", "../../../outside.png"])
def test_images_outside_of_the_dataset_are_not_opened(root: Path, place: str) -> None:
    """A dataset names no pictures of the machine that it is read on."""
    outside = root.parent / "outside.png"
    cells(root, lambda episode, frame, data: {"bytes": None, "path": place.format(outside=outside)}, None)
    shutil.copy(Path(__file__).parents[2] / "docs" / "page.png", outside)
    with pytest.raises(UserError, match="missing"):
        LeRobotDataset(root)


def test_images_named_from_the_data_file(root: Path) -> None:
    beside(root, "../../images/{key}/episode_{episode:06d}/frame_{frame:06d}.png")
    assert_equal_images(LeRobotDataset(root))


def test_missing_images_beside_the_parquet(root: Path, tmp_path: Path) -> None:
    beside(root, PLACES["of another machine"])
    for frame in (3, 5):
        (root / "images" / TOP / f"episode_000002/frame_{frame:06d}.png").unlink()
    with pytest.raises(BadEpisodeError, match=r"episode 2: 2 of 42 images .* missing, the first is that of frame 3"):
        LeRobotDataset(root)
    assert LeRobotDataset(root, cameras=["wrist"]).num_episodes == 4
    with pytest.warns(UserWarning, match=r"skipped 1 of 4 episodes \(missing image: 2\)"):
        convert_dataset(root, tmp_path / "new", skip_bad_episodes=True)
    assert LeRobotDataset(tmp_path / "new").num_episodes == 3


def png_header(width: int, height: int) -> bytes:
    """A PNG that is announced and never comes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">II", zlib.crc32(chunk), 40)
        + b"IDAT"
        + b"\0" * 44
    )


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 96\n%%EndComments\n", "cannot be decoded"),
        (png_header(13_000, 13_000), "cannot be decoded .it has 13000x13000 pixels; at most 50000000 are taken"),
        (png_header(20_000, 20_000), "cannot be decoded"),
        (png_header(6_000, 8_000), "is 8000x6000, but the first frame is 96x96"),
    ],
    ids=["eps", "169 MP", "400 MP", "another size"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_pictures_are_refused_by_their_header(
    root: Path, odd: bytes, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a picture starts no program")

    monkeypatch.setattr("subprocess.Popen", start)
    cells(root, lambda episode, frame, data: {"bytes": odd if (episode, frame) == (1, 2) else data, "path": None})
    dataset = LeRobotDataset(root)
    bad = int(dataset.episode_starts[1]) + 2
    with pytest.raises(BadEpisodeError, match=text):
        dataset.images("top", [bad])
    assert dataset.images("top", [bad + 1]).shape == (1, 96, 96, 3)


def test_pointers_beside_the_parquet(root: Path) -> None:
    """The first image of an episode tells for most; a later one when it is read."""
    beside(root, PLACES["relative"])
    for episode, frame in ((1, 0), (2, 9)):
        path = root / "images" / TOP / f"episode_{episode:06d}/frame_{frame:06d}.png"
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n")
    with pytest.raises(BadEpisodeError, match=r"episode_000001/frame_000000\.png, episode 1: the file .*git lfs pull"):
        LeRobotDataset(root)
    with pytest.raises(BadEpisodeError, match=r"frame_000009\.png, episode 2: frame 9 of .*git lfs pull"):
        LeRobotDataset(root, episodes=[2]).images("top", [9])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_as_bytes_alone(root: Path, kind: pa.DataType) -> None:
    cells(root, lambda episode, frame, data: data, kind)
    assert_equal_images(LeRobotDataset(root))


@pytest.mark.parametrize(
    ("cell", "kind", "said"),
    [
        ([[1, 2], [3, 4]], pa.list_(pa.list_(pa.uint8())), "list"),
        (3, pa.int64(), "int64"),
        ({"data": b"x"}, pa.struct([("data", pa.binary())]), "struct<data: binary>"),
    ],
)
def test_a_column_that_holds_no_images(root: Path, cell: Any, kind: pa.DataType, said: str) -> None:
    cells(root, lambda episode, frame, data: cell, kind)
    message = rf"episode_000000\.parquet: column '{TOP}' holds no images but {said}"
    with pytest.raises(UserError, match=message):
        LeRobotDataset(root)
    with pytest.raises(UserError, match=message):
        check(root, CheckConfig(horizon=3))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_270)])
def test_a_turned_camera(root: Path, form: str, orientation: int, turn: Image.Transpose) -> None:
    """The orientation that a picture carries counts, as in LeRobot."""

    def turned(episode: int, frame: int, data: bytes) -> Any:
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x112] = orientation
        crop(data).save(buffer, form, exif=exif, quality=100, **({"lossless": True} if form == "WEBP" else {}))
        return {"bytes": buffer.getvalue(), "path": None}

    originals = pq.read_table(root / "data/chunk-000/episode_000000.parquet")[TOP].to_pylist()
    cells(root, turned)
    dataset = LeRobotDataset(root)
    expected = np.asarray(crop(originals[0]["bytes"]).transpose(turn))
    assert dataset.image_shape("top") == expected.shape[:2]
    difference = np.abs(dataset.images("top", [0])[0].astype(int) - expected)
    assert difference.mean() < (4 if form == "JPEG" else 1e-9)


@pytest.mark.parametrize("alone", [False, True], ids=["struct", "bytes"])
def test_rows_without_an_image(root: Path, tmp_path: Path, alone: bool) -> None:
    def change(episode: int, frame: int, data: bytes) -> Any:
        gone = (episode, frame) in [(1, 5), (1, 37), (3, 0)]
        return (None if gone else data) if alone else {"bytes": None if gone else data, "path": "a.png"}

    cells(root, change, pa.binary() if alone else None)
    message = rf"episode 1: 2 of 38 images of '{TOP}' are missing, the first is that of frame 5;"
    with pytest.raises(BadEpisodeError, match=message) as refused:
        LeRobotDataset(root)
    assert refused.value.episodes == (1, 3)
    assert [fault["episode"] for fault in check(root, CheckConfig(horizon=3))["faults"]] == [1, 3]
    with pytest.warns(UserWarning, match=r"skipped 2 of 4 episodes \(missing image: 1, 3\)"):
        convert_dataset(root, tmp_path / "new", skip_bad_episodes=True)
    assert LeRobotDataset(tmp_path / "new").images("top", np.arange(82)).shape == (82, 96, 96, 3)


def test_bytes_that_are_no_image(root: Path) -> None:
    cells(root, lambda episode, frame, data: {"bytes": b"abc", "path": None})
    with pytest.raises(BadEpisodeError, match=r"cannot be decoded \(it is none of PNG, JPEG, WEBP, BMP, TIFF\)"):
        LeRobotDataset(root).images("top", [0])


@pytest.mark.parametrize("ending", [".PNG", ".JPG", ".JPEG"])
def test_images_with_upper_case_endings(root: Path, ending: str) -> None:
    beside(root, None)
    for path in list((root / "images").rglob("*.png")):
        path.rename(path.with_suffix(ending))
    assert_equal_images(LeRobotDataset(root))
