"""Packs of the `dlm` tool read alike, bad ones are refused before anything is written, ours carry everything."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dlm_tui.cli.main import main
from dlm_tui.document import load
from dlm_tui.store import Store, read_manifest
from dlm_tui.store.packs import (
    PackContents,
    PackError,
    PackIntegrityError,
    PackLayoutError,
    check_pack,
    unpack,
    write_pack,
)
from dlm_tui.store.packs.layout import checksums_bytes, content_sha256
from tests.interop.peer_fixture import copy_peer
from tests.interop.shared_vectors import packed, references, shared

_LISTINGS = {name: json.loads(data) for name, data in references("pack-vectors").items() if name.endswith(".json")}
_GOOD = [listing for listing in _LISTINGS.values() if not listing.get("bad")]
_BAD = [listing for listing in _LISTINGS.values() if listing.get("bad")]
# Where the tool's class is one of a pack, ours is the same.
_TOOLS_CLASSES = {"PackLayoutError", "PackIntegrityError", "PackFormatVersionError"}


def _place(listing: dict[str, Any], folder: Path) -> Path:
    path = folder / listing["pack"]
    path.write_bytes(references("pack-vectors")[listing["pack"]])
    return path


def _tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("listing", _GOOD, ids=lambda listing: listing["name"])
def test_good_packs_read_alike(listing: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _place(listing, tmp_path)
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    pack = check_pack(path)
    members = {member["name"]: member for member in listing["members"] if member["type"] == "file"}
    assert pack.files == listing["manifest"]["entries"]
    assert pack.checksums == {name: members[name]["sha256"] for name in pack.files}
    assert pack.header.content_type == listing["header"]["content_type"]
    assert main(["unpack", str(path), "--home", str(tmp_path / "home"), "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["document"]) == tmp_path / "out" / listing["unpack"]["dlm_file"]
    store = tmp_path / "home" / listing["unpack"]["store"]
    assert sorted(listing["unpack"]["files"]) == sorted(
        path.relative_to(tmp_path / "home").as_posix() for path in store.rglob("*") if path.is_file()
    )
    manifest = read_manifest(Store(tmp_path / "home", told["dlm_id"]))
    assert manifest is not None
    assert manifest.source_path == told["document"]


@pytest.mark.parametrize("listing", _BAD, ids=lambda listing: listing["name"])
def test_bad_packs_are_refused_before_anything_is_written(
    listing: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    path = _place(listing, tmp_path / "in")
    before = _tree(tmp_path)
    assert main(["verify", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    if listing["tool"].get("error") in _TOOLS_CLASSES:
        assert told["error"] == listing["tool"]["error"]
    assert main(["unpack", str(path), "--home", str(tmp_path / "home")]) == 1
    assert _tree(tmp_path) == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["in"]


def test_the_packed_copy_is_the_shared_folder() -> None:
    if not shared("pack-vectors"):
        pytest.skip("there is no shared folder beside the repository")
    assert packed("pack-vectors") == shared("pack-vectors")


def _rebuild(path: Path, change: Any) -> None:
    """Write the pack again with other members; `change` edits name -> bytes or TarInfo."""
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        members: dict[str, Any] = {
            info.name: archive.extractfile(info).read() if info.isfile() else info  # type: ignore[union-attr]
            for info in archive
        }
    change(members)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    path.write_bytes(zstandard.ZstdCompressor().compress(out.getvalue()))


def _relist(members: dict[str, Any], **more: bytes) -> None:
    """Make the lists of a changed pack agree with its contents again."""
    import hashlib

    members.update({f"store/{name}": data for name, data in more.items()})
    lists = ("CHECKSUMS.sha256", "manifest.json")
    files = {name: data for name, data in members.items() if isinstance(data, bytes) and name not in lists}
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = json.loads(members["manifest.json"])
    manifest["entries"] = {name: len(data) for name, data in files.items()}
    manifest["content_sha256"] = content_sha256(checksums)
    members["CHECKSUMS.sha256"] = checksums_bytes(checksums)
    members["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_model", "\x1b[31m[red]evil"),
        ("base_model_revision", "0" * 40),
        ("base_model_sha256", "0" * 64),
        ("adapter_version", -5),
    ],
)
def test_a_base_that_the_store_does_not_have_is_no_sound_pack(field: str, value: Any, tmp_path: Path) -> None:
    path = _place(_LISTINGS["p6-named-adapters.json"], tmp_path)

    def change(members: dict[str, Any]) -> None:
        members["manifest.json"] = json.dumps({**json.loads(members["manifest.json"]), field: value}).encode()

    _rebuild(path, change)
    with pytest.raises(PackIntegrityError, match=f"^manifest.json has the {field} ") as caught:
        check_pack(path)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("where", ["frame", "tar", "bytes"])
def test_what_stands_behind_the_end_is_in_no_list(where: str, tmp_path: Path) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    plain = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    compress = zstandard.ZstdCompressor().compress
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as archive:
        info = tarfile.TarInfo("store/sneak")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    behind = {
        "frame": lambda: compress(plain) + compress(other.getvalue()),
        "tar": lambda: compress(plain + other.getvalue()),
        "bytes": lambda: compress(plain + b"A" * 4096),
    }
    path.write_bytes(behind[where]())
    with pytest.raises(PackLayoutError, match="holds something behind the end of its members"):
        check_pack(path)
    path.write_bytes(compress(plain + b"\0" * 40_000) + compress(b"\0" * 512))
    assert check_pack(path).document_name


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_special_files_are_refused_also_inside(tmp_path: Path, kind: bytes) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    info = tarfile.TarInfo("store/extra")
    info.type, info.linkname = kind, "manifest.json"
    _rebuild(path, lambda members: members.update({"store/extra": info}))
    with pytest.raises(PackLayoutError, match="neither a file nor a folder"):
        check_pack(path)


@pytest.mark.parametrize("name", ["/etc/x", "store/../../x", "\\x", "store//x", "x", "dlm/sub/x.dlm", "store/./x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    _rebuild(path, lambda members: members.update({name: b"x"}))
    with pytest.raises(PackLayoutError):
        check_pack(path)


def test_a_pack_that_swells_is_refused_without_filling_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "bomb.dlm.pack"
    info = tarfile.TarInfo("store/zeros")
    info.size = 2 << 30
    header = info.tobuf()
    compressor = zstandard.ZstdCompressor()
    with path.open("wb") as raw, compressor.stream_writer(raw) as out:
        out.write(header)
        out.write(b"\0" * (64 << 20))
    with pytest.raises(PackLayoutError, match="more than its size allows"):
        check_pack(path)


def test_a_name_record_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "names.dlm.pack"
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    path.write_bytes(zstandard.ZstdCompressor().compress(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096))
    with pytest.raises(PackLayoutError):
        check_pack(path)


def test_a_pack_that_ends_inside_a_member_is_said_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The compression is whole, the archive within is not: as a writer leaves it that closed its file too early."""
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())) as reader:
        plain = reader.read()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        inside = archive.getmember("store/manifest.json").offset_data + 5
    path.write_bytes(zstandard.ZstdCompressor().compress(plain[:inside]))
    assert main(["verify", str(path), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["error"] == "PackLayoutError"
    assert told["message"] == f"{path} is not a whole pack: it ends inside 'store/manifest.json'"
    assert main(["unpack", str(path), "--home", str(tmp_path / "home")]) == 1
    assert "it ends inside 'store/manifest.json'" in capsys.readouterr().err


def test_a_pack_that_was_cut_is_not_said_to_be_empty(tmp_path: Path) -> None:
    path = _place(_LISTINGS["b3-truncated.json"], tmp_path)
    with pytest.raises(PackLayoutError, match=r"it ends before its first member$"):
        check_pack(path)
    path.write_bytes(b"")
    with pytest.raises(PackLayoutError, match=f"^{path} is an empty file$"):
        check_pack(path)


@pytest.mark.parametrize("extended", [False, True], ids=["header", "pax"])
def test_a_member_of_less_than_no_bytes_is_refused(
    extended: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "negative.dlm.pack"
    info = tarfile.TarInfo("store/x")
    if extended:
        info.pax_headers = {"size": "-5"}
        data = info.tobuf(tarfile.PAX_FORMAT)
    else:
        info.size = -(10**20)
        data = info.tobuf(tarfile.GNU_FORMAT)
    path.write_bytes(zstandard.ZstdCompressor().compress(data + b"\0" * 4096))
    assert main(["verify", str(path), "--json"]) == 1
    assert "claims less than no bytes" in json.loads(capsys.readouterr().out)["message"]


@pytest.mark.parametrize("headers", [{"GNU.sparse.map": "x"}, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}])
def test_headers_that_are_no_numbers_are_one_sentence(headers: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "odd.dlm.pack"
    info = tarfile.TarInfo("store/x")
    info.pax_headers = headers
    path.write_bytes(zstandard.ZstdCompressor().compress(info.tobuf(tarfile.PAX_FORMAT) + b"\0" * 4096))
    with pytest.raises(PackLayoutError, match="a header of it cannot be read"):
        check_pack(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("b" * 256, "too long for a disk"),
        ("é" * 128, "too long for a disk"),
        ("/".join(["b" * 200] * 40), "too long for a disk"),
        ("a\x1b[31mred", "cannot be seen"),
        ("a\u202egnp.exe", "cannot be seen"),
    ],
    ids=["part", "bytes", "path", "control", "bidi"],
)
def test_names_that_no_disk_or_eye_takes_are_refused_before_anything_is_written(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    _rebuild(path, lambda members: _relist(members, **{name: b"x"}))
    assert main(["verify", str(path)]) == 1
    told = capsys.readouterr().err
    assert said in told and "\x1b" not in told
    with pytest.raises(PackLayoutError, match=said):
        unpack(path, tmp_path / "home")
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("command", ["verify", "unpack"])
def test_a_pipe_is_no_pack(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody writes into it: opened, it would wait for ever."""
    path = tmp_path / "pipe.dlm.pack"
    os.mkfifo(path)
    assert main([command, str(path), "--home", str(tmp_path / "home")]) == 1
    assert f"{path} is not a file: a pack is read twice" in capsys.readouterr().err


def test_a_link_to_nothing_in_the_place_of_the_store_is_not_replaced(tmp_path: Path) -> None:
    """A home on a disk that is not there right now."""
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    root = Store(tmp_path / "home", check_pack(path).manifest.dlm_id).root
    root.parent.mkdir(parents=True)
    root.symlink_to(tmp_path / "not mounted")
    with pytest.raises(PackError, match="exists already; --force replaces it"):
        unpack(path, tmp_path / "home")
    assert root.is_symlink()
    assert unpack(path, tmp_path / "home", force=True).store.manifest_path.is_file() and not root.is_symlink()


def test_what_the_disk_refuses_names_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    (tmp_path / "home").write_text("a file")
    assert main(["unpack", str(path), "--home", str(tmp_path / "home")]) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'home'}" in told and "check the path" in told


def test_two_documents_of_one_pack_are_refused(tmp_path: Path) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)

    def add(members: dict[str, Any]) -> None:
        members["dlm/other.dlm"] = members["dlm/diverged.dlm"]
        _relist(members)

    _rebuild(path, add)
    with pytest.raises(PackLayoutError, match="2 documents"):
        check_pack(path)


def test_a_lock_in_a_pack_does_not_lock_the_store(tmp_path: Path) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    _rebuild(path, lambda members: _relist(members, **{".lock": b"1\nhere\n0.0\n"}))
    found = unpack(path, tmp_path / "home")
    assert not found.store.lock_path.exists()


@pytest.mark.parametrize("folder", ["queue", "Queue", "checkpoints"])
def test_a_line_of_jobs_in_a_pack_is_not_installed(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its jobs would run as soon as the document is opened, on whatever they name."""
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    _rebuild(path, lambda members: _relist(members, **{f"{folder}/queue.json": b"{}", f"{folder}/deep/er": b""}))
    assert main(["unpack", str(path), "--home", str(tmp_path / "home")]) == 0
    assert "not unpacked: 2 files of its line of jobs, checkpoints and locks" in capsys.readouterr().err
    assert not list((tmp_path / "home").rglob("[qQ]ueue*")) + list((tmp_path / "home").rglob("checkpoints*"))


def test_nothing_that_is_there_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _place(_LISTINGS["p6-named-adapters.json"], tmp_path)
    document = tmp_path / "uniform.dlm"
    document.write_text("mine")
    assert main(["unpack", str(path), "--home", str(tmp_path / "home")]) == 1
    assert "is another file" in capsys.readouterr().err
    assert document.read_text() == "mine"
    assert not (tmp_path / "home").exists()
    found = unpack(path, tmp_path / "home", tmp_path / "out")
    (found.store.root / "mine.txt").write_text("kept")
    before = _tree(tmp_path / "home")
    with pytest.raises(PackError, match="exists already"):
        unpack(path, tmp_path / "home", tmp_path / "out")
    assert _tree(tmp_path / "home") == before
    unpack(path, tmp_path / "home", tmp_path / "out", force=True)
    assert not (found.store.root / "mine.txt").exists()
    assert [entry.name for entry in (tmp_path / "home/store").iterdir()] == [found.store.dlm_id]


@pytest.mark.parametrize("name", ["a\u202eb.dlm", "a\x1b[31m.dlm", "a\rb.dlm", "a\u200bb.dlm", "a\u200db.dlm"])
def test_a_document_whose_name_hides_something_is_neither_unpacked_nor_packed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    document = _renamed(path, name)
    assert main(["verify", str(path)]) == 1
    assert "holds characters that cannot be seen" in capsys.readouterr().err
    with pytest.raises(PackLayoutError, match="cannot be seen"):
        unpack(path, tmp_path / "home")
    (tmp_path / name).write_bytes(document)
    with pytest.raises(PackLayoutError, match="its name holds characters that cannot be seen; rename it"):
        write_pack(tmp_path / name, Store(tmp_path / "home", load(tmp_path / name).dlm_id))


@pytest.mark.parametrize(
    "name", ["\U0001f468\u200d\U0001f469.dlm", "\u0645\u06cc\u200c\u062e\u0648.dlm", "a\u3000b\xa0\u2014.dlm"]
)
def test_a_name_that_a_person_may_have_is_unpacked(name: str, tmp_path: Path) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    _renamed(path, name)
    assert check_pack(path).document_name == name


def _renamed(path: Path, name: str) -> bytes:
    """Give the document in a pack another name; returns it."""
    found: list[bytes] = []

    def change(members: dict[str, Any]) -> None:
        (before,) = (member for member in members if member.startswith("dlm/") and member.endswith(".dlm"))
        found.append(members.pop(before))
        members[f"dlm/{name}"] = found[0]
        _relist(members)

    _rebuild(path, change)
    return found[0]


def test_a_name_without_room_for_the_ending_names_the_document(tmp_path: Path) -> None:
    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    document = tmp_path / f"{'n' * 251}.dlm"
    document.write_bytes(_renamed(path, "a.dlm"))
    with pytest.raises(PackError, match=f"{document.name} has too long a name for .pack behind it; name the pack with"):
        write_pack(document, Store(tmp_path / "home", load(document).dlm_id))


def test_our_pack_carries_store_document_and_companions(tmp_path: Path) -> None:
    copy_peer(tmp_path / "peer")
    document = next((tmp_path / "peer").glob("routed.dlm"))
    document.with_name("routed.dlm.tui.toml").write_text('[source_adapters]\n"a" = "tone"\n')
    document.with_name("routed.prompts.json").write_text('{"mine": ["hello"]}')
    store = Store(tmp_path / "peer/home", load(document).dlm_id)
    (store.root / "exports").mkdir(exist_ok=True)
    (store.root / "exports/run.sh").write_text("#!/bin/sh\n")
    (store.root / "exports/run.sh").chmod(0o755)
    (store.root / "empty").mkdir()
    (store.root / "empty-not").mkdir()
    (store.root / "empty-not/back\\slash é.txt").write_text("x")
    done = write_pack(document, store, tmp_path / "a.dlm.pack")
    assert done.executables == 0
    with pytest.raises(PackError, match="exists already"):
        write_pack(document, store, tmp_path / "a.dlm.pack")
    found = unpack(tmp_path / "a.dlm.pack", tmp_path / "home", tmp_path / "out")
    assert found.document.read_bytes() == document.read_bytes()
    assert (tmp_path / "out/routed.dlm.tui.toml").read_bytes() == document.with_name("routed.dlm.tui.toml").read_bytes()
    assert (tmp_path / "out/routed.prompts.json").exists()
    assert (found.store.root / "empty").is_dir()
    theirs, ours = _tree(store.root), _tree(found.store.root)
    left_out = {name for name in theirs if name.startswith(("exports/", "cache/", "logs/"))}
    assert set(ours) == set(theirs) - left_out
    assert {name for name in ours if ours[name] != theirs[name]} <= {"manifest.json", "metrics.sqlite"}
    again = write_pack(document, store, tmp_path / "again.dlm.pack")
    hashes = [check_pack(pack.path).manifest.content_sha256 for pack in (done, again)]
    assert hashes[0] == hashes[1]
    full = write_pack(document, store, tmp_path / "b.dlm.pack", PackContents(exports=True))
    assert full.executables == 1
    assert check_pack(tmp_path / "b.dlm.pack").header.content_type == "no-base"


def test_a_link_out_of_the_store_is_not_packed(tmp_path: Path) -> None:
    copy_peer(tmp_path / "peer")
    document = next((tmp_path / "peer").glob("routed.dlm"))
    store = Store(tmp_path / "peer/home", load(document).dlm_id)
    (store.root / "leak").symlink_to("/etc/hostname")
    with pytest.raises(PackLayoutError, match="leads out of the store"):
        write_pack(document, store)
    assert not list((tmp_path / "peer").glob("*.pack*"))


def test_a_pack_replaced_after_it_was_checked_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlm_tui.store.packs import installing

    path = _place(_LISTINGS["p1-minimal.json"], tmp_path)
    checked = check_pack(path)
    _rebuild(path, lambda members: members.update({"store/manifest.json": members["store/manifest.json"] + b" "}))
    monkeypatch.setattr(installing, "check_pack", lambda *_: checked)
    with pytest.raises(PackIntegrityError):
        unpack(path, tmp_path / "home", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "home/store").iterdir()) == []
