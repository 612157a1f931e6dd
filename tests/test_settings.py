"""Settings, command-line options and recipes: names, defaults, and what wrong values are told."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cruxtune.errors import ConfigError
from cruxtune.options import leaf_fields, merged, nested_values, parse_pairs
from cruxtune.recipe import Recipe, plan, read_recipe
from cruxtune.settings import build, flag, flat, identity_of, inner_settings, nest
from cruxtune.stage_settings import (
    AnnotateSettings,
    CompareSettings,
    EvaluateSettings,
    RespondSettings,
    SelectSettings,
    TrainSettings,
)
from cruxtune.trainer_fields import REFUSED_TRAINER_FIELDS

STAGES = [RespondSettings, AnnotateSettings, SelectSettings, TrainSettings, EvaluateSettings, CompareSettings]
TRAIN = {"method": "cft", "annotations": "a", "output": "o"}
EVALUATE = {"problems": "p.jsonl", "model": "m", "output": "o"}
RECIPE = {
    "output": "run",
    "model": "m",
    "problems": "p.jsonl",
    "splits": {"train": 4, "heldout": 2},
    "train": {"cft": {"method": "cft"}},
}


def recipe_file(tmp_path: Path, **changes: Any) -> Path:
    """Return a small recipe, some sections of it replaced (None: left out)."""
    content = {name: value for name, value in {**RECIPE, **changes}.items() if value is not None}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# Leaf names


@pytest.mark.parametrize("kind", STAGES)
def test_leaf_names_are_unique_within_a_stage(kind: type[BaseModel]) -> None:
    """One name is one flag, one key and one entry of the manifest."""
    names = [name for name, _, _ in leaf_fields(kind)]
    assert len(names) == len(set(names))
    assert len({flag(name) for name in names}) == len(names)


@pytest.mark.parametrize("kind", STAGES)
def test_every_leaf_has_a_description(kind: type[BaseModel]) -> None:
    """--help says something of every option, as a sentence."""
    for name, field, _ in leaf_fields(kind):
        assert field.description, name
        assert field.description[-1] in ".)", name


@pytest.mark.parametrize("kind", STAGES)
@given(data=st.data())
def test_nesting_and_flattening_are_inverse(kind: type[BaseModel], data: st.DataObject) -> None:
    """Any subset of leaves, nested as the class is and flattened again, is that subset."""
    names = [name for name, _, _ in leaf_fields(kind)]
    leaves = data.draw(st.dictionaries(st.sampled_from(names), st.integers()))
    nested = nest(kind, leaves)
    flattened: dict[str, Any] = {}
    for name, value in nested.items():
        inner = inner_settings(kind.model_fields[name].annotation)
        assert value != {}
        flattened.update(value if inner else {name: value})
    assert flattened == leaves


def test_flattened_settings_build_the_same_settings() -> None:
    """What a manifest holds as leaves gives the settings back."""
    settings = build(EvaluateSettings, {**EVALUATE, "samples": 3, "template": "plain", "fields": {"answer": "gold"}})
    assert build(EvaluateSettings, flat(settings)) == settings
    assert (settings.samples, settings.prompt.template, settings.problems.fields) == (3, "plain", {"answer": "gold"})


def test_identity_is_what_determines_the_rows() -> None:
    """Where rows go and where problems come from is left out, fingerprints take its place; every other leaf counts."""
    first = build(EvaluateSettings, EVALUATE)
    moved = build(EvaluateSettings, {**EVALUATE, "output": "elsewhere", "overwrite": True, "problems": "copy.jsonl"})
    other = build(EvaluateSettings, {**EVALUATE, "temperature": 0.5})
    same = {"model": "sha256:1", "problems": "sha256:2"}
    assert identity_of(first, **same) == identity_of(moved, **same)
    assert (
        identity_of(first, **same).items() >= {"model": "sha256:1", "problems": "sha256:2", "temperature": 1.0}.items()
    )
    assert identity_of(first, **same) != identity_of(other, **same)
    assert identity_of(first, **same) != identity_of(first, **{**same, "model": "sha256:3"})


# What wrong values are told


def test_an_error_lists_everything_that_is_wrong_by_flag() -> None:
    """One run shows all mistakes: missing, out of range, of another type, unknown."""
    with pytest.raises(ConfigError) as caught:
        build(EvaluateSettings, {"model": "m", "top_p": 2.0, "max_new_tokens": "many", "dtype": "int8", "typo": 1})
    message = str(caught.value)
    for part in (
        "--benchmarks: either this or --problems is needed",
        "--output: is required",
        "--typo: there is no such setting",
    ):
        assert part in message
    assert "--top-p: Input should be less than or equal to 1 (got 2.0)" in message
    assert "--max-new-tokens: " in message
    assert "(got 'many')" in message
    assert "--dtype: Input should be 'auto', 'float64', 'float32', 'bfloat16' or 'float16' (got 'int8')" in message
    assert "\n" not in message


def test_an_error_in_a_section_names_its_keys() -> None:
    """From a recipe the same mistakes are told by dotted key."""
    with pytest.raises(ConfigError) as caught:
        build(TrainSettings, {**TRAIN, "epochs": 0, "typo": 1}, "train.cft")
    assert "train.cft.epochs: Input should be greater than 0 (got 0)" in str(caught.value)
    assert "train.cft.typo: there is no such setting" in str(caught.value)


@pytest.mark.parametrize("kind", STAGES)
def test_a_missing_value_is_told_by_a_flag_that_exists(kind: type[BaseModel]) -> None:
    """What an error calls a flag is one of the command."""
    with pytest.raises(ConfigError) as caught:
        build(kind, {})
    flags = {flag(name) for name, _, _ in leaf_fields(kind)}
    told = {part.partition(":")[0] for part in str(caught.value).split("; ")}
    assert told
    assert told <= flags


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"annotations": None}, "method cft trains on annotated responses, so it needs --annotations"),
        ({"method": "sft", "annotations": None}, "method sft trains on annotated responses"),
        ({"method": "gold"}, "method gold trains on worked solutions, so it needs --problems and --model"),
        ({"method": "gold", "problems": "p.jsonl"}, "needs --problems and --model"),
        ({"batch_size": 16, "micro_batch_size": 5}, "--micro-batch-size 5 does not divide --batch-size 16"),
        ({"model": "m", "dtype": "bfloat16"}, "dtype bfloat16 keeps no exact copy of the weights"),
        ({"model": "m", "dtype": "float16"}, "dtype float16 keeps no exact copy of the weights"),
        ({"validation": "1.5"}, "neither a share between 0 and 1 nor a number"),
        ({"validation": 0}, "neither a share between 0 and 1 nor a number"),
        ({"validation": 0.1, "validation_source": {"split": "test"}}, "--validation-source belongs to"),
        ({"patience": 2}, "--patience and --keep go by the accuracy of --validation"),
        ({"keep": "last"}, "--patience and --keep go by the accuracy of --validation"),
        ({"evaluate_every": 5}, "--evaluate-every has nothing to measure"),
        ({"method": "gold", "annotations": None, "problems": "p", "model": "m", "probe": 4}, "--probe reads annotated"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], complaint: str) -> None:
    """A combination that would train something else than asked is an error that says why."""
    leaves = {name: value for name, value in {**TRAIN, **changes}.items() if value is not None}
    with pytest.raises(ConfigError, match=complaint):
        build(TrainSettings, leaves)


@pytest.mark.parametrize(
    "changes",
    [
        {"micro_batch_size": 4},
        {"model": "m", "dtype": "bfloat16", "lora": True},
        {"model": "m", "dtype": "float64"},
        {"method": "gold", "annotations": None, "problems": "p.jsonl", "model": "m"},
        {"trainer": {"weight_decay": 0.1, "lr_scheduler_type": "cosine"}},
        {"validation": "0.1", "patience": 2, "keep": "last", "evaluate_every": 5, "max_new_tokens": 9},
        {"validation": "v.jsonl", "validation_source": {"kind": "exact"}},
        {"probe": 4, "evaluate_every": 5},
    ],
)
def test_settings_that_agree_are_taken(changes: dict[str, Any]) -> None:
    """The checks refuse nothing that works."""
    leaves = {name: value for name, value in {**TRAIN, **changes}.items() if value is not None}
    assert (
        flat(build(TrainSettings, leaves)).items()
        >= {name: value for name, value in changes.items() if value is not None}.items()
    )


def test_settings_do_not_change() -> None:
    """Settings are values: what a stage was given is what its manifest says."""
    settings = build(TrainSettings, TRAIN)
    with pytest.raises(ValueError, match="frozen"):
        settings.epochs = 5


@pytest.fixture(scope="module")
def trainer_fields() -> set[str]:
    """The fields of TRL's configuration."""
    from trl import SFTConfig

    return {field.name for field in dataclasses.fields(SFTConfig)}


@pytest.mark.parametrize("name", sorted(REFUSED_TRAINER_FIELDS))
def test_a_refused_trainer_field_is_a_real_one_and_is_refused_by_name(name: str, trainer_fields: set[str]) -> None:
    """Each field that would change or drop labels exists in this TRL, and is refused with its reason."""
    assert name in trainer_fields
    with pytest.raises(ConfigError, match=f"--trainer {name} is refused: ") as caught:
        build(TrainSettings, {**TRAIN, "trainer": {name: None}})
    assert REFUSED_TRAINER_FIELDS[name] in str(caught.value)


@pytest.mark.parametrize("reason", sorted(set(REFUSED_TRAINER_FIELDS.values())))
def test_flags_in_reasons_exist(reason: str) -> None:
    """A reason that names a flag names one of `cruxtune train`."""
    flags = {flag(name) for name, _, _ in leaf_fields(TrainSettings)}
    assert {word.strip(",.;") for word in reason.split() if word.startswith("--")} <= flags


# Pairs and overrides


@pytest.mark.parametrize("pair", ["novalue", "=1", ""])
def test_a_pair_needs_a_name_and_a_value(pair: str) -> None:
    """What is no NAME=VALUE is shown with its flag."""
    with pytest.raises(ConfigError, match=f"--evaluation {pair}: write it as NAME=VALUE"):
        parse_pairs([pair], "evaluations")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("text", "text"),
        ("", None),
        ("a=b", "a=b"),
        ("{x: 1}", {"x": 1}),
    ],
)
def test_values_are_read_as_yaml(text: str, value: Any) -> None:
    """Numbers, lists and truth values keep their type; what follows the first = is the value."""
    assert parse_pairs([f"key={text}"], "gym") == {"key": value}


def test_columns_and_directories_stay_text() -> None:
    """A column named 1 or a directory named true is no number and no truth value."""
    assert parse_pairs(["answer=1", "question=true"], "fields") == {"answer": "1", "question": "true"}
    assert parse_pairs(["a=2024"], "evaluations") == {"a": "2024"}


@pytest.mark.parametrize("value", ["[1", "{a", "'x", "@x", "a: b: c"])
def test_a_value_that_is_no_yaml_is_a_users_error(value: str) -> None:
    """It names the flag and the pair, in one line."""
    with pytest.raises(ConfigError, match=r"--set key=.* is no valid YAML") as caught:
        nested_values([f"key={value}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("overrides", [["seed=1", "seed.x=2"], ["a.b=text", "a.b.c=2"], ["a=[1]", "a.b=2"]])
def test_an_override_within_a_value_is_refused(overrides: list[str]) -> None:
    """A key cannot be a value and a section."""
    with pytest.raises(ConfigError, match="leave one of them out"):
        nested_values(overrides)


names = st.text("ab", min_size=1, max_size=2)
# No section within is empty: it would be a value of its own, and replaces what it meets.
trees = st.recursive(st.integers(), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8)
mappings = st.dictionaries(names, trees, max_size=3)


def leaves_of(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the values of nested mappings by path."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {key: value for name, inner in tree.items() for key, value in leaves_of(inner, (*path, name)).items()}


@given(mappings, mappings)
def test_merging_puts_in_every_value_and_changes_no_other(base: dict[str, Any], over: dict[str, Any]) -> None:
    """Every leaf of `over` is in the result, and a leaf of `base` that no value of `over` touches stays."""
    copy = yaml.safe_load(yaml.safe_dump(base))
    result = leaves_of(merged(base, over))
    assert base == copy
    assert result.items() >= leaves_of(over).items()
    touched = leaves_of(over)
    for path, value in leaves_of(base).items():
        if not any(path[: len(other)] == other[: len(path)] for other in touched):
            assert result[path] == value


@given(
    st.dictionaries(st.lists(st.text("ab", min_size=1), min_size=2, max_size=2).map(tuple), st.integers(), max_size=6)
)
def test_dotted_overrides_are_nested_by_their_dots(values: dict[tuple[str, ...], int]) -> None:
    """Each override is found again at its path."""
    nested = nested_values([f"{'.'.join(path)}={value}" for path, value in values.items()])
    assert leaves_of(nested) == values


# Recipes


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1", "is no valid YAML: .*line 1"),
        ("a: b: c", "is no valid YAML: .*line 1"),
        ("\ttab: 1", "is no valid YAML"),
        ("- a\n- b", "must be a mapping of sections"),
        ("", "must be a mapping of sections"),
        ("just text", "must be a mapping of sections"),
        (b"output: \xff\xfe", "is no valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_said_to_be_none(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    """Broken YAML, other content and other encodings are told in one line with the path (and the place)."""
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_recipe(path, {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing file and a directory are told alike."""
    for path in (tmp_path / "nope.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"the recipe {path} does not exist"):
            read_recipe(path, {})


def test_a_recipe_lists_everything_that_is_wrong_by_dotted_key(tmp_path: Path) -> None:
    """All mistakes of all sections are shown at once, each where it stands, with a hint for a misspelt section."""
    path = recipe_file(
        tmp_path, model=None, splits={"train": 0}, decoding={"max_new_tokens": "x"}, anotate={"limit": 3}
    )
    with pytest.raises(ConfigError) as caught:
        read_recipe(path, {})
    message = str(caught.value)
    assert "model: is required" in message
    assert "splits.train: Input should be greater than 0 (got 0)" in message
    assert "decoding.max_new_tokens: " in message
    assert "anotate: there is no such setting" in message
    assert "did you mean annotate instead of anotate?" in message


def test_overrides_replace_values_of_a_recipe(tmp_path: Path) -> None:
    """An override changes its own value alone, and can add a section; a misspelt one gets a hint too."""
    path = recipe_file(tmp_path, engine={"draft_length": 5, "batch_size": 3})
    recipe = read_recipe(path, nested_values(["engine.batch_size=7", "seed=4", "evaluate.samples=2"]))
    assert (recipe.engine.draft_length, recipe.engine.batch_size, recipe.seed) == (5, 7, 4)
    assert recipe.evaluate == {"samples": 2}
    with pytest.raises(ConfigError, match="did you mean seed instead of sede"):
        read_recipe(path, nested_values(["sede=4"]))


def test_a_text_stands_for_the_first_field(tmp_path: Path) -> None:
    """`model: NAME` is `model: {model: NAME}`, and `problems` likewise."""
    short = read_recipe(recipe_file(tmp_path, heldout="h.jsonl"), {})
    long = read_recipe(
        recipe_file(tmp_path, model={"model": "m"}, problems={"problems": "p.jsonl"}, heldout={"problems": "h.jsonl"}),
        {},
    )
    assert short == long
    assert (short.model.model, short.problems.problems) == ("m", "p.jsonl")


def test_a_part_of_what_a_text_stands_for_can_be_overridden(tmp_path: Path) -> None:
    """`--set model.dtype=…` keeps the model of a recipe that has `model: NAME`; `--set model=…` replaces it whole."""
    recipe = read_recipe(recipe_file(tmp_path), nested_values(["model.dtype=float32", "problems.kind=exact"]))
    assert (recipe.model.model, recipe.model.dtype) == ("m", "float32")
    assert (recipe.problems.problems, recipe.problems.kind) == ("p.jsonl", "exact")
    path = recipe_file(tmp_path, model={"model": "m", "revision": "v1"})
    replaced = read_recipe(path, nested_values(["model=other"])).model
    assert (replaced.model, replaced.revision) == ("other", None)


def test_a_section_cannot_write_elsewhere(tmp_path: Path) -> None:
    """A step that wrote to another place would leave the next one without its input."""
    path = recipe_file(tmp_path, annotate={"output": "elsewhere"}, evaluate={"overwrite": True})
    with pytest.raises(ConfigError, match=r"annotate\.output: later steps read") as caught:
        plan(read_recipe(path, {}))
    assert str(caught.value).count("evaluate.overwrite: ") == 1


def test_sections_of_stages_are_checked_with_the_plan(tmp_path: Path) -> None:
    """Wrong keys of every stage's section are told together, each by its section; nothing is reported twice."""
    path = recipe_file(
        tmp_path,
        coldstart={"epochs": -1},
        annotate={"alternative": 3},
        train={"cft": {"method": "cft", "trainer": {"packing": True}}, "x": {"method": "dpo"}},
        evaluate={"samples": -2},
    )
    with pytest.raises(ConfigError) as caught:
        plan(read_recipe(path, {}))
    message = str(caught.value)
    for part in (
        "coldstart.epochs: Input should be greater than 0 (got -1",
        "annotate.alternative: there is no such setting",
        "train.cft: --trainer packing is refused",
        "train.x.method: is none of cft, sft, gold, nor of the methods of `cruxtune select` (critical, all, ",
        "evaluate.samples: Input should be greater than or equal to 0 (got -2)",
    ):
        assert message.count(part) == 1


def test_a_model_cannot_be_called_start(tmp_path: Path) -> None:
    """That name is the model that training starts from."""
    recipe = read_recipe(recipe_file(tmp_path, train={"start": {"method": "cft"}}), {})
    with pytest.raises(ConfigError, match=r"train\.start: this name is taken"):
        plan(recipe)


def test_a_recipe_reinforces_what_it_trained(tmp_path: Path) -> None:
    """A step of `rl` starts from a model of the recipe, on its problems and terms, and is evaluated and compared."""
    sections = {"train": {"cft": {"method": "cft"}}, "rl": {"a": {"from": "cft", "steps": 3}, "b": {}}}
    recipe = read_recipe(recipe_file(tmp_path, decoding={"max_new_tokens": 99}, **sections), {})
    steps: dict[str, Any] = {step.name: step for step in plan(recipe)}
    root = recipe.output / "models"
    first, second = steps["rl a"].settings, steps["rl b"].settings
    assert (steps["rl a"].stage, first.steps, first.decoding.max_new_tokens) == ("rl", 3, 99)
    assert (first.model.model, first.output.output) == (str(root / "cft"), root / "a")
    assert second.model == recipe.model
    assert first.problems == steps["respond"].settings.problems
    assert steps["evaluate a"].settings.model.model == str(root / "a")
    assert list(steps["compare"].settings.evaluations) == ["start", "cft", "a", "b"]
    assert [step.name for step in plan(recipe, only="rl *")] == ["rl a", "rl b"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"a": {"from": "sft"}}, r"rl\.a\.from: 'sft' is neither start nor a name in train"),
        ({"start": {}}, r"rl\.start: this name is taken"),
        ({"cft": {}}, r"rl\.cft: this name is one of train, too"),
        ({"a": {"generations": 1}}, r"rl\.a: --generations 1"),
        ({"a": {"trainer": {"num_generations": 2}}}, r"num_generations is refused: use --generations"),
    ],
)
def test_wrong_sections_of_reinforcement_are_explained(section: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Unknown starts, names that are taken, and what cannot learn are told before any work."""
    recipe = read_recipe(recipe_file(tmp_path, train={"cft": {"method": "cft"}}, rl=section), {})
    with pytest.raises(ConfigError, match=message):
        plan(recipe)


def test_a_pattern_that_matches_no_step_is_told(tmp_path: Path) -> None:
    """The error lists the steps that there are."""
    with pytest.raises(ConfigError, match="--only rl matches no step; they are respond, annotate, "):
        plan(read_recipe(recipe_file(tmp_path), {}), only="rl")


def test_splits_that_are_missing_are_told_before_any_work(tmp_path: Path) -> None:
    """A cold start without problems for it, and no way to held-out problems, are errors that name the key."""
    from cruxtune.pipeline import split

    with pytest.raises(ConfigError, match=r"splits\.heldout is missing and there is no section heldout"):
        split(read_recipe(recipe_file(tmp_path, problems="gym:chain_sum", splits={"train": 4}), {}))
    with pytest.raises(ConfigError, match=r"splits\.coldstart is missing"):
        split(read_recipe(recipe_file(tmp_path, coldstart={}), {}))


def demo(tmp_path: Path) -> Recipe:
    """Return the recipe of the demo."""
    import cruxtune

    return read_recipe(Path(cruxtune.__file__).with_name("demo.yaml"), {"output": str(tmp_path)})


def test_the_plan_of_the_demo_hands_on_what_each_step_wrote(tmp_path: Path) -> None:
    """Every step reads what an earlier one writes: problems, start model, responses, annotations, models, scores."""
    steps = {step.name: step for step in plan(demo(tmp_path))}
    assert list(steps) == [
        *("coldstart", "respond", "annotate", "train sft", "train cft"),
        *("evaluate start", "evaluate sft", "evaluate cft", "compare"),
    ]
    settings: dict[str, Any] = {name: step.settings for name, step in steps.items()}
    assert settings["coldstart"].method == "gold"
    assert settings["coldstart"].model.model == "embedded"
    assert settings["respond"].model.model == str(settings["coldstart"].output.output)
    assert settings["annotate"].responses == settings["respond"].output.output
    for method in ("sft", "cft"):
        trained = settings[f"train {method}"]
        assert (trained.method, trained.annotations) == (method, settings["annotate"].output.output)
        assert settings[f"evaluate {method}"].model.model == str(trained.output.output)
    assert settings["evaluate start"].model == settings["respond"].model
    assert list(settings["compare"].evaluations) == ["start", "sft", "cft"]
    assert settings["compare"].evaluations["cft"] == [settings["evaluate cft"].output.output]
    files = [settings[name].problems.problems for name in ("coldstart", "respond", "evaluate cft")]
    assert files == [str(tmp_path / "problems" / f"{name}.jsonl") for name in ("coldstart", "train", "heldout")]


def test_the_demo_asks_everywhere_in_the_same_way(tmp_path: Path) -> None:
    """Prompt, verifier, token limit and seed are the same in every stage, and both methods train alike."""
    recipe = demo(tmp_path).model_copy(update={"seed": 5})
    settings: dict[str, Any] = {step.name: step.settings for step in plan(recipe)}
    for name in ("coldstart", "respond", "evaluate start", "evaluate sft", "evaluate cft"):
        assert settings[name].prompt == recipe.prompt
    for name in ("respond", "evaluate start", "evaluate sft", "evaluate cft"):
        assert (settings[name].verifier, settings[name].decoding) == (recipe.verifier, recipe.decoding)
    assert {one.output.seed for name, one in settings.items() if name != "compare"} == {settings["compare"].seed} == {5}
    alike = [flat(settings[f"train {name}"]) for name in ("sft", "cft")]
    assert {name for name in alike[0] if alike[0][name] != alike[1][name]} == {"method", "output"}


def test_without_a_cold_start_the_policy_is_the_recipes_model(tmp_path: Path) -> None:
    """No step trains on worked solutions, and the base with its adapter and revision is what responds."""
    path = recipe_file(tmp_path, model={"model": "org/base", "adapter": "lora", "revision": "v2", "dtype": "float32"})
    steps = {step.name: step for step in plan(read_recipe(path, {}))}
    assert "coldstart" not in steps
    settings: dict[str, Any] = {name: step.settings for name, step in steps.items()}
    assert settings["respond"].model == settings["evaluate start"].model == read_recipe(path, {}).model
    trained = settings["evaluate cft"].model
    assert (trained.adapter, trained.revision, trained.dtype) == (None, None, "float32")


def test_another_model_may_annotate_for_the_policy(tmp_path: Path) -> None:
    """The policy responds, trains and is evaluated; only its responses are annotated by the other."""
    path = recipe_file(tmp_path, model="org/base", annotate={"model": "org/other", "joint": "pairs"})
    settings: dict[str, Any] = {step.name: step.settings for step in plan(read_recipe(path, {}))}
    assert settings["annotate"].model.model == "org/other"
    assert settings["train cft"].model == settings["respond"].model == settings["evaluate start"].model
    alone = recipe_file(tmp_path, model="org/base")
    assert {step.name: step.settings for step in plan(read_recipe(alone, {}))}["train cft"].model is None


def test_overwrite_reaches_every_step(tmp_path: Path) -> None:
    """`run --overwrite` starts every stage again."""
    steps = plan(demo(tmp_path), overwrite=True)
    assert all(flat(step.settings)["overwrite"] for step in steps if step.stage != "compare")


@pytest.mark.parametrize("given", [0.25, {"validation": 0.25, "patience": 2}])
def test_validation_holds_for_every_model_but_the_cold_start(tmp_path: Path, given: Any) -> None:
    """One section of a recipe reaches each method alike; a cold start validates only where its own keys say so."""
    train = {"sft": {"method": "sft"}, "cft": {"method": "cft"}, "some": {"method": "entropy", "patience": 3}}
    changes = {"validation": given, "train": train, "splits": {"coldstart": 4, "heldout": 2}, "coldstart": {}}
    steps = {step.name: step.settings for step in plan(read_recipe(recipe_file(tmp_path, **changes), {}))}
    patience = given["patience"] if isinstance(given, dict) else None
    for name, expected in (("sft", patience), ("cft", patience), ("some", 3)):
        found = steps[f"train {name}"].validation
        assert (found.validation, found.patience) == ("0.25", expected)
    assert steps["coldstart"].validation.validation is None
    changes |= {"coldstart": {"validation": 2}, "decoding": {"max_new_tokens": 33}}
    steps = {step.name: step.settings for step in plan(read_recipe(recipe_file(tmp_path, **changes), {}))}
    assert steps["coldstart"].decoding.max_new_tokens == 33
