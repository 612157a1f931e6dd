"""Statistics of annotations: checked against counts made in another way; as JSON, as a page, on the command line."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cruxtune.cli import main
from cruxtune.errors import ConfigError, DataError
from cruxtune.models import load_tokenizer
from cruxtune.prompts import character_spans
from cruxtune.records import ANNOTATION_SCHEMA, Annotation
from cruxtune.settings import ModelSettings, build
from cruxtune.stage_settings import AnnotateSettings, RespondSettings
from cruxtune.stages.annotate import annotate
from cruxtune.stages.respond import respond
from cruxtune.stages.stats import stats
from cruxtune.stats_settings import StatsSettings
from cruxtune.store import DatasetWriter, read_manifest, read_rows
from cruxtune.token_classes import token_classes


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory, make_world: Any) -> Any:
    """Annotations with four alternatives, all of them asked, in a world that later tests share."""
    root = tmp_path_factory.mktemp("stats")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        world = make_world(root)
        respond(world.settings(RespondSettings, output=root / "responses", limit=12))
        common = {"responses": root / "responses", "alternatives": 4, "every_alternative": True}
        annotate(world.settings(AnnotateSettings, output=root / "four", **common))
    return world


def copied(world: Any, name: str, change: Any) -> Path:
    """A copy of the annotations with each of them changed, as another model might have made it."""
    manifest = read_manifest(world.root / "four")
    rows = [change(Annotation.from_row(row)).to_row() for row in read_rows(world.root / "four")]
    with DatasetWriter(
        world.root / name, "annotate", {"copy": name}, groups=1, tables={"data": ANNOTATION_SCHEMA}, overwrite=True
    ) as writer:
        writer.describe(manifest["facts"])
        writer.write(0, {"data": rows}, {"seconds": 0.0})
        writer.close(settings=manifest["settings"])
    return Path(world.root / name)


def test_shares_equal_counts_made_apart(annotations: Any) -> None:
    """Every way to group counts every known token once, classes as a loop over tokens finds them."""
    result = stats(StatsSettings(annotations=[annotations.root / "four"], bins=3, top=4))
    found = result["annotations"]["four"]
    rows = [Annotation.from_row(row) for row in read_rows(annotations.root / "four")]
    critical = [mark for row in rows for mark in row.critical]
    assert (found["responses"], found["tokens"]) == (len(rows), len(critical))
    assert (found["critical"], found["alternatives"]) == (critical.count(True), 4)
    assert 0 < found["critical"] < found["tokens"]
    for key in ("classes", "positions", "entropy", "rank_gap"):
        assert sum(row["tokens"] for row in found[key]) == len(critical)
        assert sum(row["critical"] for row in found[key]) == critical.count(True)
    tokenizer = load_tokenizer(ModelSettings(model=str(annotations.model)))
    numbers = [
        mark
        for row in rows
        for name, mark in zip(
            token_classes(*character_spans(tokenizer, row.response.response_ids)), row.critical, strict=True
        )
        if name == "number"
    ]
    by_class = {row["group"]: row for row in found["classes"]}
    assert (by_class["number"]["tokens"], by_class["number"]["critical"]) == (len(numbers), numbers.count(True))
    ids = [token for row in rows for token, mark in zip(row.response.response_ids, row.critical, strict=True) if mark]
    assert [row["critical"] for row in found["top_tokens"]] == sorted(map(ids.count, set(ids)), reverse=True)[:4]
    assert all(ids.count(row["id"]) == row["critical"] for row in found["top_tokens"])


def test_labels_with_fewer_alternatives_are_those_of_fewer(annotations: Any) -> None:
    """The shares for k = 1, 2 and 4 are what annotation with so many alternatives finds."""
    found = stats(StatsSettings(annotations=[annotations.root / "four"]))["annotations"]["four"]["by_alternatives"]
    shares = {row["alternatives"]: (row["tokens"], row["critical"]) for row in found["shares"]}
    assert list(shares) == [1, 2, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(annotations.root)
        for count in (1, 2):
            name = f"k{count}"
            annotate(
                annotations.settings(
                    AnnotateSettings,
                    output=annotations.root / name,
                    responses=annotations.root / "responses",
                    alternatives=count,
                )
            )
            marks = [mark for row in read_rows(annotations.root / name) for mark in row["critical"]]
            assert shares[count] == (len(marks), marks.count(True))
    pair = next(row for row in found["agreement"] if (row["first"], row["second"]) == (1, 2))
    both, only_with_one = shares[2][1], shares[1][1] - shares[2][1]
    counts = pair["agreement"]
    assert (counts["both"], counts["first"], counts["second"]) == (both, only_with_one, 0)


def test_models_are_compared_on_what_they_share(annotations: Any) -> None:
    """Agreement is over the responses of both and the tokens known in both; other tokenizers are left out."""
    flipped = copied(
        annotations,
        "flipped",
        lambda one: replace(one, critical=[None, *(not mark for mark in one.critical[1:])]),
    )
    result = stats(StatsSettings(annotations=[annotations.root / "four", flipped]))
    (pair,) = result["models"]
    rows = list(read_rows(annotations.root / "four"))
    marks = [mark for row in rows for mark in row["critical"][1:]]
    assert (pair["responses"], pair["agreement"]["tokens"]) == (len(rows), len(marks))
    assert (pair["agreement"]["equal"], pair["agreement"]["both"]) == (0.0, 0)
    assert pair["agreement"]["first"] == marks.count(True)
    others = copied(
        annotations,
        "others",
        lambda one: replace(one, response=replace(one.response, sample=one.response.sample + 7)),
    )
    (pair,) = stats(StatsSettings(annotations=[flipped, others]))["models"]
    assert (pair["agreement"], pair["left_out"]) == (None, "they share no response with tokens known in both")


def test_the_page_is_the_same_every_time(
    annotations: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints tables, and writes a page, its figure and JSON, byte for byte the same when run again."""
    written = []
    for name in ("a", "b"):
        root = annotations.root / name
        command = f"cruxtune stats {annotations.root / 'four'} --json {root}/numbers.json --page {root}/tokens.md"
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        main()
        written.append({path.name: path.read_bytes() for path in root.iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"numbers.json", "tokens.md", "tokens-four.svg"}
    page = written[0]["tokens.md"].decode()
    assert "](tokens-four.svg)" in page
    found = json.loads(written[0]["numbers.json"])["annotations"]["four"]
    assert f"| number | {found['classes'][0]['tokens']:,} | {found['classes'][0]['critical']:,} |" in page
    assert written[0]["tokens-four.svg"].startswith(b"<?xml")
    assert "number" in written[0]["tokens-four.svg"].decode()
    assert "Tokens that are critical most often" in capsys.readouterr().out


def test_what_cannot_be_counted_is_refused(annotations: Any) -> None:
    """Annotations without a known token, and a directory given twice, are errors that say so."""
    nothing = copied(annotations, "nothing", lambda one: replace(one, critical=[None] * len(one.critical)))
    with pytest.raises(DataError, match="--positions"):
        stats(StatsSettings(annotations=[nothing]))
    with pytest.raises(ConfigError, match="given twice"):
        build(StatsSettings, {"annotations": [nothing, nothing]})
