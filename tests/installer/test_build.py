from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from installer import licences
from installer.parts import ROOT


def wheel(folder: Path, name: str, *fields: str) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        lines = ["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *fields, "", "License: of the description"]
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        (["License-Expression: MIT", "License: see LICENSE"], "MIT"),
        (["License: Apache 2.0 License"], "Apache 2.0 License"),
        (["Classifier: License :: OSI Approved :: BSD License"], "BSD License"),
    ],
)
def test_the_licence_is_read_from_the_wheel(tmp_path: Path, fields: list[str], licence: str) -> None:
    read = licences.read(wheel(tmp_path, "Some_Thing", *fields))
    assert (read.name, read.licence) == ("some-thing", licence)
    assert f"| {licence} |" in licences.listing([read])


@pytest.mark.parametrize("field", ["License: Proprietary", "License: Commercial", "Summary: no licence at all"])
def test_what_may_not_be_passed_on_is_not_bundled(tmp_path: Path, field: str) -> None:
    with pytest.raises(licences.NotRedistributable, match="must not be bundled"):
        licences.read(wheel(tmp_path, "thing", field))


def test_the_licences_that_the_notices_name_are_beside_the_list() -> None:
    notices = (ROOT / "THIRD_PARTY_NOTICES.md").read_text(encoding="utf-8")
    for path in (ROOT / "installer" / "licences").glob("intel-*.txt"):
        assert f"`{path.name}`" in notices
