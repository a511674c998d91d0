"""The matrix of one user: ours and theirs, by id; what does not exist is refused with its near misses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folders import CELL, CHIP, MODEL, write

from release.errors import MatrixError, UsageError
from release.matrix.check import plan_of
from release.matrix.load import OURS, Matrix, is_cell, split


def test_our_own_matrix_is_there_without_an_overlay() -> None:
    matrix = Matrix()
    assert "cpu" in matrix.chips()
    assert "tiny-qwq" in matrix.models()
    assert "cpu/tiny-qwq" in matrix.cell_files()
    assert {"cpu/tiny-qwq@bf16", "cpu/tiny-qwq@fp32"} <= {cell for cell, _ in matrix.cells()}


def test_an_overlay_adds_to_what_we_have(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    assert {"abacus", "cpu"} <= set(matrix.chips())
    assert {"pebble-7b", "tiny-qwq"} <= set(matrix.models())
    assert {cell for cell, _ in matrix.cells()} >= {"abacus/pebble-7b@w8a8", "abacus/pebble-7b@bf16~native", "cpu/tiny-qwq@bf16"}


def test_an_overlay_replaces_what_we_have_file_by_file(tmp_path: Path) -> None:
    ours = (OURS / "chips" / "cpu.yaml").read_text()
    write(tmp_path, {"chips/cpu.yaml": ours.replace("name: x86-64 host processor", "name: my own")})
    matrix = Matrix((tmp_path,))
    assert matrix.chip("cpu").name == "my own"
    assert matrix.model("tiny-qwq").id == "tiny-qwq"
    assert plan_of(matrix, "cpu/tiny-qwq@bf16").chip.name == "my own"


def test_the_last_overlay_has_the_last_word(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, {"chips/abacus.yaml": CHIP.replace("Abacus 9", name)}) for name in ("one", "two"))
    assert Matrix((first, second)).chip("abacus").name == "two"
    assert Matrix((second, first)).chip("abacus").name == "one"
    assert Matrix((first, second)).file("wheels/abacus.txt") == second / "wheels/abacus.txt"


def test_a_data_file_comes_from_the_overlay_or_else_from_us(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    assert matrix.file("wheels/abacus.txt") == tmp_path / "wheels/abacus.txt"
    assert matrix.file("chips/cpu.yaml") == OURS / "chips/cpu.yaml"


def test_a_data_file_that_no_folder_has_is_refused_with_the_folders_looked_in(tmp_path: Path) -> None:
    with pytest.raises(MatrixError, match=r"matrix file wheels/none\.txt does not exist") as caught:
        Matrix((tmp_path,)).file("wheels/none.txt")
    assert str(tmp_path) in caught.value.next_step


def test_an_overlay_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the matrix folder .*nowhere does not exist"):
        Matrix((tmp_path / "nowhere",))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="does not exist"):
        Matrix((tmp_path / "file",))


def test_an_empty_overlay_changes_nothing(tmp_path: Path) -> None:
    assert Matrix((tmp_path,)).chips() == Matrix().chips()


def test_a_chip_that_does_not_exist_is_refused_with_its_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no chip 'abakus' \(did you mean 'abacus'\?\)") as caught:
        Matrix((write(tmp_path),)).chip("abakus")
    assert caught.value.next_step.startswith("there are: abacus")
    assert caught.value.exit_code == 2


def test_a_model_that_does_not_exist_is_refused_with_its_near_misses(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no model 'pebble-70b' \(did you mean 'pebble-7b'\?\)"):
        Matrix((write(tmp_path),)).model("pebble-70b")


def test_a_cell_of_a_chip_and_a_model_that_exist_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no cell abacus/tiny-qwq") as caught:
        Matrix((write(tmp_path),)).cell_file("abacus", "tiny-qwq")
    assert "there are: abacus/pebble-7b" in caught.value.next_step
    assert "add matrix/cells/abacus/tiny-qwq.yaml" in caught.value.next_step


@pytest.mark.parametrize(("chip", "model", "wanted"), [("abakus", "pebble-7b", "chip"), ("abacus", "pebbles", "model")])
def test_a_cell_whose_chip_or_model_is_misspelt_names_that(chip: str, model: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no {wanted} .*did you mean"):
        Matrix((write(tmp_path),)).cell_file(chip, model)


@pytest.mark.parametrize("name", ["../cpu", "cpu.yaml", "/etc/passwd", "", "*", "cpu\n", "CPU"])
def test_a_name_is_looked_up_and_never_put_into_a_path(name: str, tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    with pytest.raises(UsageError, match="there is no chip"):
        matrix.chip(name)
    with pytest.raises(UsageError, match="there is no model"):
        matrix.model(name)


def test_an_id_that_is_not_the_files_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {"chips/abacus.yaml": CHIP.replace("id: abacus", "id: calculator"), "models/stone.yaml": "# one\n" + MODEL})
    with pytest.raises(MatrixError, match=r"chips/abacus.yaml:1: id: is 'calculator', the file's name says 'abacus'"):
        Matrix((tmp_path,)).chip("abacus")
    with pytest.raises(MatrixError, match=r"models/stone.yaml:2: id: is 'pebble-7b', the file's name says 'stone'"):
        Matrix((tmp_path,)).model("stone")


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ("chip: abacus", "chip: cpu", "1: chip: the file says cpu/pebble-7b, its place says abacus/pebble-7b"),
        ("model: pebble-7b", "model: tiny-qwq", "2: model: the file says abacus/tiny-qwq, its place says abacus/pebble-7b"),
    ],
)
def test_a_cell_file_in_another_cells_place_is_refused(old: str, new: str, wanted: str, tmp_path: Path) -> None:
    write(tmp_path, {"cells/abacus/pebble-7b.yaml": CELL.replace(old, new)})
    with pytest.raises(MatrixError, match=wanted):
        Matrix((tmp_path,)).cell_file("abacus", "pebble-7b")


@pytest.mark.parametrize("arm", ["bf17", "bf16~", "bf16~A", "~native", "bf16~a~b", "../bf16", "bf16 ", "bf16@bf16"])
def test_an_arm_that_is_no_precision_is_refused_with_its_line(arm: str, tmp_path: Path) -> None:
    write(tmp_path, {"cells/abacus/pebble-7b.yaml": CELL.replace("bf16~native:", f'"{arm}":')})
    with pytest.raises(MatrixError) as caught:
        list(Matrix((tmp_path,)).cells())
    assert f"pebble-7b.yaml:21: cells.{arm}: is neither a precision nor precision~variant" in str(caught.value)


def test_a_link_to_nowhere_is_refused_like_any_file_that_cannot_be_read(tmp_path: Path) -> None:
    (write(tmp_path) / "chips" / "ghost.yaml").symlink_to(tmp_path / "nowhere")
    with pytest.raises(MatrixError, match=r"ghost.yaml: cannot be read"):
        Matrix((tmp_path,)).chip("ghost")


def test_a_file_that_was_edited_is_read_anew(tmp_path: Path) -> None:
    matrix = Matrix((write(tmp_path),))
    assert matrix.chip("abacus").name == "Abacus 9"
    write(tmp_path, {"chips/abacus.yaml": CHIP.replace("Abacus 9", "Abacus X")})
    os.utime(tmp_path / "chips/abacus.yaml", ns=(1, 1))
    assert matrix.chip("abacus").name == "Abacus X"


@pytest.mark.parametrize(
    ("cell", "parts"),
    [
        ("cpu/tiny-qwq@bf16", ("cpu", "tiny-qwq", "bf16")),
        ("a/b@w8a8~native", ("a", "b", "w8a8~native")),
        ("a.b/c_d@fp8", ("a.b", "c_d", "fp8")),
    ],
)
def test_a_cell_id_comes_apart(cell: str, parts: tuple[str, str, str]) -> None:
    assert is_cell(cell)
    assert split(cell) == parts


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "cpu",
        "cpu/tiny-qwq",
        "cpu/tiny-qwq@",
        "cpu/tiny-qwq@bf17",
        "/tiny-qwq@bf16",
        "cpu//tiny@bf16",
        "a/b/c@bf16",
        "../b@bf16",
        *("a/..@bf16", "a/b@bf16~", "a/b@bf16~../x", "A/b@bf16", "a/b@bf16\n", "a b/c@bf16", "a/b@bf16@bf16", "-a/b@bf16"),
    ],
)
def test_what_is_no_cell_id_is_refused(cell: str) -> None:
    assert not is_cell(cell)
    with pytest.raises(UsageError, match="is not a cell") as caught:
        split(cell)
    assert "cpu/tiny-qwq@bf16" in caught.value.next_step
