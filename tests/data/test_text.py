import gzip
import hashlib
from pathlib import Path

import pytest

from subquad.data import fetch
from subquad.data.text import BYTES, load_text, source_text, split


def test_a_text_is_cut_in_order():
    data = bytes(range(100))
    found = split(data, source="a text")
    assert [len(part) for part in (found.train, found.validation, found.test)] == [90, 5, 5]
    assert b"".join(p.tobytes() for p in (found.train, found.validation, found.test)) == data
    assert found.source == "a text, 90 bytes to train on, 5 to validate, 5 to test"
    assert BYTES.size == 256
    with pytest.raises(ValueError, match="bytes for all three parts, got 3 bytes"):
        split(b"abc", source="short")


def test_the_text_that_is_always_there():
    assert b"argparse" in source_text().train.tobytes()


def test_loading_checks_every_byte_and_says_what_brings_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"gcide\.dict is missing: bring it with `subquad"):
        load_text(tmp_path)
    data = b"some words " * 9
    (tmp_path / "gcide.dict").write_bytes(data)
    with pytest.raises(ValueError, match=r"gcide\.dict is corrupt or another file"):
        load_text(tmp_path)
    monkeypatch.setitem(fetch.TEXT_MD5, "gcide.dict", hashlib.md5(data).hexdigest())
    assert load_text(tmp_path).train.tobytes() == data[:89]


@pytest.mark.parametrize(
    ("bring", "md5s", "package", "folder", "packed"),
    [
        (fetch.fetch_text, "TEXT_MD5", "dict-gcide", "usr/share/dictd", "gcide.dict.dz"),
        (
            fetch.fetch_proteins,
            "PROTEIN_MD5",
            "mmseqs2-examples",
            "usr/share/doc/mmseqs2/example-data",
            "DB.fasta.gz",
        ),
    ],
)
def test_the_files_come_out_of_debian_packages(
    tmp_path, monkeypatch, bring, md5s, package, folder, packed
):
    data, name = b"the file's bytes", Path(packed).stem

    def run(program, *arguments, folder: Path):
        if program == "apt-get":
            assert arguments == ("download", package)
            (folder / f"{package}_1_all.deb").touch()
        else:
            (folder / "unpacked" / where).mkdir(parents=True)
            (folder / "unpacked" / where / packed).write_bytes(gzip.compress(data))

    where = Path(folder)
    monkeypatch.setattr(fetch, md5s, {name: hashlib.md5(data).hexdigest()})
    monkeypatch.setattr(fetch, "run_program", run)
    # What this machine may have installed is not looked at.
    monkeypatch.setattr(fetch, f"{md5s.split('_')[0]}_FOLDER", where / "subquad-test")
    where = where / "subquad-test"
    assert bring(tmp_path / "new") == tmp_path / "new"
    assert (tmp_path / "new" / name).read_bytes() == data
