"""The settings: described, frozen, limited, and each rule about two of them speaks for itself."""

import json

import pytest
from pydantic import ValidationError

from utils.config.load import ConfigError, dump_config, flatten, load_config, parse_config, preset_names
from utils.config.rules import disagreements
from utils.config.schema import RunConfig, field_table

TABLE = field_table()
RULES = [
    (["model.shape.n_embd=130"], "model.shape.n_embd=130 is not a multiple of model.shape.n_head=4"),
    (
        ["model.shape.n_embd=12"],
        "a llama needs an even number of channels per head, and model.shape.n_embd=12 over "
        "model.shape.n_head=4 gives 3",
    ),
    (["model.shape.n_kv_head=3"], "model.shape.n_head=4 is not a multiple of model.shape.n_kv_head=3"),
    (
        ["model.kind=gpt", "model.shape.n_kv_head=2"],
        "model.kind=gpt has no grouped heads: set model.shape.n_kv_head=0 (given: 2) or model.kind=llama",
    ),
    (
        ["data.seq_len=257"],
        "data.seq_len=257 is longer than model.shape.block_size=256: lower the one or raise the other",
    ),
    (
        ["model.kind=bdh", "model.shape.qk_norm=true"],
        "model.shape.activation, qk_norm, value_residual and zero_init are for gpt and llama: a bdh has none of them",
    ),
    (
        ["model.kind=bdh", "train.optimizer=muon"],
        "train.optimizer=muon is for matrices of repeated blocks, and a bdh has none: use adamw",
    ),
    (
        ["train.batch_warmup_steps=1001"],
        "train.batch_warmup_steps=1001 is longer than train.max_steps=1000",
    ),
    (["data.source=text"], "data.source=text needs data.path=FILE_OR_FOLDER"),
    (["data.path=book.txt"], "data.path=book.txt is only read with data.source=text, csv, jsonl or parquet"),
    (
        ["train.max_steps=0"],
        "train.max_steps and train.epochs are both 0: one of them must say how long to train",
    ),
    (
        ["train.epochs=2"],
        "train.max_steps=1000 and train.epochs=2 both say how long to train: set one of them to 0",
    ),
    (["train.min_lr=1e-2"], "train.min_lr=0.01 is above train.learning_rate=0.003"),
    (["train.warmup_steps=1001"], "train.warmup_steps=1001 is longer than train.max_steps=1000"),
    (
        ["train.patience=3", "train.eval_every=0"],
        "train.patience=3 counts evaluations, and train.eval_every=0 turns them off",
    ),
]
FINE = [
    ["model.kind=gpt", "model.shape.n_embd=12"],  # a gpt may have odd heads
    ["model.kind=gpt", "model.shape.n_kv_head=4"],
    ["model.shape.n_kv_head=4"],
    ["model.shape.n_kv_head=1"],
    ["data.seq_len=256"],
    ["data.source=text", "data.path=book.txt"],
    ["train.max_steps=0", "train.epochs=0.5", "train.warmup_steps=5000"],
    ["train.min_lr=3e-3"],
    ["train.warmup_steps=1000"],
    ["train.batch_warmup_steps=1000"],
    ["model.kind=gpt", "model.shape.activation=relu2", "model.shape.qk_norm=true"],
    ["train.patience=3", "train.eval_every=1"],
]


def test_the_defaults_agree():
    assert disagreements(RunConfig()) == []


@pytest.mark.parametrize(("overrides", "text"), RULES, ids=[text[:40] for _, text in RULES])
def test_each_rule_reports_exactly_itself(overrides, text):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides)
    assert caught.value.problems == [text]


@pytest.mark.parametrize("overrides", FINE, ids=" ".join)
def test_the_edges_of_the_rules_are_allowed(overrides):
    assert disagreements(load_config(overrides=overrides)) == []


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [
        (["model.shape.n_embd=130"], "model.shape.n_head=none"),
        (["model.shape.n_embd=12"], "model.kind=bert"),
        (["model.shape.n_kv_head=3"], "model.shape.n_head=0"),
        (["data.seq_len=300"], "model.shape.block_size=-1"),
        (["data.path=book.txt"], "data.source=shelf"),
        (["train.epochs=2"], "train.max_steps=-1"),
        (["train.min_lr=1e-2"], "train.learning_rate=0"),
        (["train.warmup_steps=1001"], "train.max_steps=many"),
    ],
)
def test_a_rule_is_silent_when_one_of_its_settings_is_itself_wrong(broken, wrong):
    # The default of the wrong setting would break the rule, too: `load_config(overrides=broken)` does.
    with pytest.raises(ConfigError):
        load_config(overrides=broken)
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[*broken, wrong])
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(wrong.partition("=")[0] + "=")


@pytest.mark.parametrize(
    ("broken", "wrong"), [("data.seq_len=300", "model=5"), ("data.seq_len=300", "model.shape=big")]
)
def test_a_rule_is_silent_when_a_whole_group_of_its_settings_is_wrong(broken, wrong):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[broken, wrong])
    assert len(caught.value.problems) == 1, caught.value.problems
    assert f"{wrong.partition('=')[0]} is a group of settings, not one value" in caught.value.problems[0]


def test_a_rule_about_other_settings_is_reported_beside_a_wrong_one():
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["train.beta1=2", "data.seq_len=300"])
    assert [p.split("=")[0] for p in caught.value.problems] == ["train.beta1", "data.seq_len"]


@pytest.mark.parametrize("row", TABLE, ids=[row[0] for row in TABLE])
def test_every_setting_says_its_type_and_what_it_is(row):
    _key, words, _default, description = row
    assert words
    assert len(description.split()) >= 3
    assert description[0].isupper()
    assert description.endswith(".")
    assert "\n" not in description


def test_the_table_lists_every_setting_once_with_its_default():
    defaults = flatten(RunConfig().model_dump())
    assert [row[0] for row in TABLE] == list(defaults)
    assert {row[0]: row[2] for row in TABLE} == defaults


def test_the_table_names_types_in_words():
    words = {row[0]: row[1] for row in TABLE}
    assert words["train.max_steps"] == "int"
    assert words["train.learning_rate"] == "float"
    assert words["train.deterministic"] == "bool"
    assert words["model.kind"] == "gpt | llama | bdh | builder | hub | folder"


@pytest.mark.parametrize("section", ["model", "data", "train", "checkpoint"])
def test_a_config_is_frozen(section):
    config = RunConfig()
    part = getattr(config, section)
    name = next(iter(type(part).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, name, getattr(part, name))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, section, part)


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("key", [row[0] for row in TABLE if row[1] == "float"])
def test_numbers_that_are_not_finite_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"^1 problem in the settings:\n  - {key}=(nan|inf): "):
        load_config(overrides=[f"{key}={value}"])


@pytest.mark.parametrize("name", preset_names())
def test_the_json_schema_accepts_every_preset(name):
    jsonschema = pytest.importorskip("jsonschema")
    settings = json.loads(json.dumps(parse_config(dump_config(load_config(name))).model_dump()))
    jsonschema.validate(settings, RunConfig.model_json_schema())


@pytest.mark.parametrize(
    ("group", "key", "value", "text"),
    [
        ("train", "max_stepz", 3, "Additional properties"),
        ("train", "max_steps", "many", "is not of type 'integer'"),
        ("train", "max_steps", -1, "less than the minimum"),
        ("train", "beta1", 1.0, "maximum"),
        ("data", "source", "shelf", "is not one of"),
        ("checkpoint", "keep_best", "maybe", "is not of type 'boolean'"),
    ],
)
def test_the_json_schema_refuses_what_the_config_refuses(group, key, value, text):
    jsonschema = pytest.importorskip("jsonschema")
    settings = RunConfig().model_dump()
    settings[group][key] = value
    with pytest.raises(jsonschema.ValidationError, match=text):
        jsonschema.validate(settings, RunConfig.model_json_schema())
    with pytest.raises(ValidationError):
        RunConfig.model_validate(settings)


def test_the_json_schema_carries_the_descriptions():
    train = RunConfig.model_json_schema()["$defs"]["TrainConfig"]["properties"]
    table = {row[0]: row[3] for row in TABLE}
    assert {f"train.{name}": field["description"] for name, field in train.items()} == {
        key: text for key, text in table.items() if key.startswith("train.")
    }
