"""The feature cache: exact, capped, and quiet about a disk that lets it down."""

import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from vidllm.caches import cache_folder
from vidllm.model.features import FeatureCache, pixel_digest


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_out_is_what_went_in(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.randn(144, 8).to(dtype)
    FeatureCache(tmp_path).put("k1", features)
    for cache in (FeatureCache(tmp_path), FeatureCache(tmp_path)):  # another process, twice
        found = cache.get("k1")
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, features)
        assert cache.get("k1") is found
        assert cache.get("k2") is None


def test_entries_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors import safe_open

    FeatureCache(tmp_path).put("abcd", torch.ones(2, 3))
    assert entries(tmp_path) == [tmp_path / "ab" / "abcd.safetensors"]
    with safe_open(entries(tmp_path)[0], framework="pt") as file:
        assert list(file.keys()) == ["features"]


@pytest.mark.parametrize("place", [0, 5, 40, 100, -1])
def test_a_flipped_bit_anywhere_is_noticed_and_rebuilt(tmp_path: Path, place: int) -> None:
    features = torch.randn(16, 4)
    FeatureCache(tmp_path).put("key", features)
    path = entries(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)
    cache = FeatureCache(tmp_path)
    assert cache.get("key") is None
    assert not path.exists()
    cache.put("key", features)
    found = FeatureCache(tmp_path).get("key")
    assert found is not None
    assert torch.equal(found, features)


NO_ENTRIES = (
    b"", b"no tensor", save({"features": torch.ones(2)}), save({"other": torch.ones(2)}),
    save({"features": torch.tensor(1.0)}, {"digest": "0"}),
)  # fmt: skip


@pytest.mark.parametrize("content", NO_ENTRIES)
def test_files_that_are_no_entries_are_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ke").mkdir()
    (tmp_path / "ke" / "key.safetensors").write_bytes(content)
    assert FeatureCache(tmp_path).get("key") is None


def test_memory_is_capped_and_forgets_the_least_recently_used() -> None:
    cache = FeatureCache(None, memory_bytes=3 * 400)
    for name in "abc":
        cache.put(name, torch.full((100,), 1.0))
    assert cache.get("a") is not None
    cache.put("d", torch.ones(100))
    assert cache.get("b") is None
    assert all(cache.get(name) is not None for name in "acd")
    cache.put("huge", torch.ones(10_000))
    assert cache.get("huge") is None
    assert cache.get("a") is not None


def test_disk_is_capped_and_forgets_the_least_recently_used(tmp_path: Path) -> None:
    one = torch.ones(1000)  # 4000 bytes and a header
    theirs = tmp_path / "video" / "model.safetensors"  # a folder the user named may hold other things
    theirs.parent.mkdir()
    theirs.write_bytes(bytes(50_000))
    os.utime(theirs, (10, 10))
    cache = FeatureCache(tmp_path, memory_bytes=0, disk_bytes=5 * 4200)
    for age, name in enumerate("abcde"):
        cache.put(name * 40, one)
        os.utime(tmp_path / (name * 2) / f"{name * 40}.safetensors", (1000 + age, 1000 + age))
    assert cache.get("a" * 40) is not None  # used now: no longer the oldest
    cache.put("f" * 40, one)
    assert theirs.is_file()
    theirs.unlink()
    left = {path.stem for path in entries(tmp_path)}
    assert "a" * 40 in left
    assert "f" * 40 in left
    assert "b" * 40 not in left
    cache.put("9" * 40, torch.ones(10_000))  # it alone is over the cap: nobody makes room for it
    assert {path.stem for path in entries(tmp_path)} == left
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 5 * 4200


def test_the_cache_may_be_named_from_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A service's environment is read by no shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VIDLLM_CACHE", "~/kept")
    assert cache_folder("features") == tmp_path / "kept" / "features"


def test_what_a_killed_process_left_half_written_counts_and_goes_first(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    for name, age in ((".part-old", 5000), (".part-new", 0)):
        (folder / name).write_bytes(bytes(50_000))
        os.utime(folder / name, (time.time() - age,) * 2)
    FeatureCache(tmp_path, disk_bytes=52_000).put("cd" * 20, torch.ones(1000))
    assert {path.name for path in tmp_path.glob("*/*")} == {".part-new", "cd" * 20 + ".safetensors"}


def test_several_processes_share_one_cap(tmp_path: Path) -> None:
    """Each counted the folder once and then what it wrote itself: six wrote six times the cap."""
    caches = [FeatureCache(tmp_path, memory_bytes=0, disk_bytes=100_000) for _ in range(6)]
    for number in range(9):
        for which, cache in enumerate(caches):
            cache.put(f"{10 * number + which:040x}", torch.ones(2500))
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 101_000


def test_an_entry_of_somebody_else_is_read_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time of use can not be set by who does not own it; it was thrown away for that."""
    FeatureCache(tmp_path).put("key", torch.ones(4))

    def not_yours(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", not_yours)
    assert FeatureCache(tmp_path).get("key") is not None
    assert entries(tmp_path)


def test_a_folder_that_may_not_be_entered_costs_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an entry is there is not told, either: that error came out of the ask."""

    def closed(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    with caplog.at_level(logging.WARNING, "vidllm"):
        FeatureCache(tmp_path).put("key", torch.ones(4))
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"feature cache off: {tmp_path}: Permission denied"
    ]


def test_a_folder_that_can_not_be_made_costs_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = FeatureCache(tmp_path / "file" / "features")
    with caplog.at_level(logging.WARNING, "vidllm"):
        for name in "abc":
            cache.put(name, torch.ones(4))
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()
    assert "feature cache off" in caplog.text
    assert cache.get("a") is not None  # memory still works
    assert FeatureCache(tmp_path / "file" / "features").get("a") is None


def test_a_full_disk_costs_one_line_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    cache = FeatureCache(tmp_path)
    with caplog.at_level(logging.WARNING, "vidllm"):
        cache.put("a", torch.ones(4))
        cache.put("b", torch.ones(4))
    assert [record.getMessage() for record in caplog.records] == [
        f"feature cache off: {tmp_path}: No space left on device; set VIDLLM_CACHE to a folder with room"
    ]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_cached_features_can_take_part_in_training(tmp_path: Path) -> None:
    """Tensors made under inference mode can not; the cache hands out ordinary ones."""
    cache = FeatureCache(tmp_path)
    with torch.inference_mode():
        cache.put("a", torch.ones(3))
    weight = torch.ones(3, requires_grad=True)
    found = cache.get("a")
    assert found is not None
    (weight * found).sum().backward()
    assert weight.grad is not None


def test_a_kept_slice_does_not_keep_its_chunk() -> None:
    chunk = torch.zeros(1000, 1000)
    cache = FeatureCache(None)
    cache.put("a", chunk[0])
    found = cache.get("a")
    assert found is not None
    assert found.untyped_storage().nbytes() == 4000


def test_threads_share_it(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, memory_bytes=50 * 400, disk_bytes=30 * 500)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for step in range(60):
            key = (seed * 7 + step) % 40
            found = cache.get(str(key))
            if found is not None and not torch.equal(found, torch.full((100,), float(key))):
                wrong.append(key)
            cache.put(str(key), torch.full((100,), float(key)))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_digest_covers_pixels_shape_and_context() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    other = pixels.copy()
    other[0, 0, 0] ^= 1
    variants = [pixel_digest(picture) for picture in (pixels, other, pixels.reshape(4, 2, 3))]
    assert len({*variants, pixel_digest(pixels, "x")}) == 4
    assert pixel_digest(pixels) == pixel_digest(np.asfortranarray(pixels))
