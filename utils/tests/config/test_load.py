"""Presets, YAML files and dotted words become one checked config, or one message with every problem."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config.load import (
    PRESETS,
    ConfigError,
    config_hash,
    differences,
    dump_config,
    flatten,
    load_config,
    parse_config,
    preset_names,
)
from utils.config.schema import RunConfig, field_table

ROOT = Path(__file__).parents[3]


def problems_of(*overrides, **where):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=overrides, **where)
    return caught.value.problems


def test_a_recipe_for_our_layers_is_no_setting_of_anothers_model(tmp_path: Path):
    theirs = ("model.kind=builder", "model.ref=somewhere")
    (found,) = problems_of(*theirs, "model.shape.zero_init=true")
    assert found.startswith("model.shape.zero_init is for gpt and llama, and a model from elsewhere (kind builder)")
    (tmp_path / "ours.yaml").write_text("model: {shape: {zero_init: true}}")  # a preset's own model has them
    assert load_config(file=tmp_path / "ours.yaml", overrides=theirs).model.kind == "builder"


# -- presets and round trips ------------------------------------------------------------------------


def test_the_presets_are_there():
    assert {"debug", "quickstart", "gpt-small", "llama-small"} <= set(preset_names())
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_complete_and_says_what_it_is_for(name):
    config = load_config(name)
    assert list(flatten(config.model_dump())) == [row[0] for row in field_table()]
    first = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert re.match(r"# \w.{20,}\.$", first)


@pytest.mark.parametrize("name", preset_names())
def test_dump_and_parse_give_the_same_settings(name):
    config = load_config(name)
    assert parse_config(dump_config(config)) == config
    assert dump_config(parse_config(dump_config(config))) == dump_config(config)


@pytest.mark.parametrize("name", preset_names())
def test_a_dumped_preset_is_a_config_file(name, tmp_path):
    (tmp_path / "config.yaml").write_text(dump_config(load_config(name)), encoding="utf-8")
    assert load_config(file=tmp_path / "config.yaml") == load_config(name)


@pytest.mark.parametrize(
    "prompt", ["\n", " ", "a\nb", "yes", "12", "1e-3", "null", "~", "# x", "a: b", "\x00", "\x85\u2028", "é😀", "'\"\\"]
)
def test_any_prompt_survives_the_round_trip(prompt):
    config = RunConfig.model_validate({"train": {"sample_prompt": prompt}, "run_dir": prompt})
    again = parse_config(dump_config(config))
    assert (again.train.sample_prompt, again.run_dir) == (prompt, prompt)


@pytest.mark.parametrize("number", [1e-300, 1e-5, 0.1, 1 / 3, 3e-4, 1e22, 123456789.123456789])
def test_any_float_survives_the_round_trip(number):
    config = RunConfig.model_validate({"train": {"learning_rate": number, "min_lr": 0.0}})
    assert parse_config(dump_config(config)).train.learning_rate == number


# -- the run's folder -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_the_same_settings_have_the_same_folder(name):
    config = load_config(name)
    assert re.fullmatch(rf"runs/{name}-[0-9a-f]{{6}}", config.run_dir)
    assert load_config(name).run_dir == config.run_dir
    assert load_config(name, overrides=["train.seed=1338"]).run_dir != config.run_dir


def test_without_a_preset_the_folder_is_called_run():
    assert re.fullmatch(r"runs/run-[0-9a-f]{6}", load_config().run_dir)


def test_saying_a_default_aloud_changes_nothing():
    assert load_config("debug", overrides=["train.seed=1337"]).run_dir == load_config("debug").run_dir


def test_a_folder_given_by_the_user_is_kept():
    assert load_config("debug", overrides=["run_dir=runs/mine"]).run_dir == "runs/mine"


def test_the_hash_knows_every_setting_but_the_folder():
    config = load_config("debug")
    changed = [
        load_config("debug", overrides=[word])
        for word in ("train.seed=1", "data.seed=1", "model.shape.n_layer=3", "checkpoint.keep_last=9")
    ]
    assert len({config_hash(config), *map(config_hash, changed)}) == 5
    assert config_hash(config.model_copy(update={"run_dir": "elsewhere"})) == config_hash(config)
    assert re.fullmatch(r"[0-9a-f]{64}", config_hash(config))


def test_differences_names_what_changed_and_not_the_folder():
    old = load_config("debug")
    new = load_config("debug", overrides=["train.seed=7", "train.schedule=linear", "run_dir=elsewhere"])
    assert differences(old, new) == ["train.schedule: 'wsd' -> 'linear'", "train.seed: 1337 -> 7"]
    assert differences(old, old.model_copy(update={"run_dir": "elsewhere"})) == []


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


# -- who wins ---------------------------------------------------------------------------------------


def test_a_word_wins_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("train: {max_steps: 30, warmup_steps: 2}\nmodel: {shape: {n_layer: 3}}\n")
    config = load_config("debug", file, ["train.max_steps=40", "train.max_steps=50"])
    assert config.train.max_steps == 50
    assert config.train.warmup_steps == 2
    assert config.model.shape.n_layer == 3
    assert config.model.shape.n_embd == 32  # of the preset: groups are merged, not replaced
    assert config.train.grad_clip == RunConfig().train.grad_clip


# -- values of words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.learning_rate=1e-3", 0.001),
        ("train.learning_rate=1.0E-3", 0.001),
        ("train.learning_rate=2", 2.0),
        ("train.learning_rate='0.5'", 0.5),
        ("train.max_steps=1_000", 1000),
        ('train.max_steps="300"', 300),
        ("train.max_steps=300.0", 300),
        ("train.deterministic=true", True),
        ("train.deterministic=yes", True),
        ("train.deterministic=False", False),
        ("train.sample_prompt=Once upon", "Once upon"),
        ("train.sample_prompt=a=b", "a=b"),
        (r'train.sample_prompt="\n"', "\n"),
        (r'train.sample_prompt="one\ntwo\t\u00e9"', "one\ntwo\té"),
        ("train.sample_prompt='\\n'", "\\n"),
        ('train.sample_prompt="12"', "12"),
        ("train.sample_prompt=[a", "[a"),
        ("train.sample_prompt=é😀", "é😀"),
        ("data.path=", ""),
    ],
)
def test_a_word_gives_this_value(word, value):
    settings = flatten(load_config(overrides=[word]).model_dump())
    given = settings[word.partition("=")[0]]
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("run_dir=2026-11-20", "2026-11-20"),
        ("run_dir=2026-13-45", "2026-13-45"),
        ("run_dir=7", "7"),
        ("run_dir=0x_", "0x_"),
        ("train.sample_prompt=12:30", "12:30"),
        ("train.sample_prompt=Tom said: no", "Tom said: no"),
        ("train.sample_prompt=yes", "yes"),
        ("train.sample_prompt=# Title", "# Title"),
    ],
)
def test_the_word_of_a_text_setting_is_taken_as_it_is_written(word, value):
    assert flatten(load_config(overrides=[word]).model_dump())[word.partition("=")[0]] == value


@pytest.mark.parametrize("word", ["train.max_steps=yes", "train.batch_size=true", "train.learning_rate=on"])
def test_yes_is_not_a_number(word):
    assert problems_of(word)[0].startswith(word.partition("=")[0] + "=True: ")


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("train.max_steps=2.5", "train.max_steps=2.5: input should be a valid integer"),
        ("train.max_steps=", "train.max_steps='': input should be a valid integer"),
        ("train.max_steps=null", "train.max_steps=None: input should be a valid integer"),
        ("train.max_steps=-1", "train.max_steps=-1: input should be greater than or equal to 0"),
        ("train.beta1=1", "train.beta1=1: input should be less than 1"),
        ("train.deterministic=2", "train.deterministic=2: input should be a valid boolean"),
        ("data.packing=rows", "data.packing='rows': input should be 'auto', 'blocks' or 'documents'"),
        ("data.size=999", "data.size=999: input should be greater than or equal to 1000"),
        ("train=3", "train is a group of settings, not one value (given: 3)"),
        ("model.shape=big", "model.shape is a group of settings, not one value (given: 'big')"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(word, text):
    problems = problems_of(word)
    assert len(problems) == 1
    assert problems[0].startswith(text)


def test_a_wrong_value_comes_with_the_description():
    description = {row[0]: row[3] for row in field_table()}["train.warmup_steps"]
    assert problems_of("train.warmup_steps=soon")[0].endswith(f"  [{description}]")


def test_on_and_off_are_words_though_yaml_reads_them_as_yes_and_no():
    for word in ("on", "off", "auto"):
        config = load_config(overrides=[f"train.compile={word}"])
        assert config.train.compile == word
        assert parse_config(dump_config(config)) == config


def test_an_automatic_batch_size_is_kept_as_zero():
    assert load_config(overrides=["train.batch_size=auto"]).train.batch_size == 0


# -- all problems at once ---------------------------------------------------------------------------


def test_every_problem_is_in_one_message():
    words = ["nonsense", "train.max_stepz=3", "train.batch_size=many", "train.beta1=1.5", "data.seq_len=512", "=4"]
    expected = [
        "'nonsense' is not a setting: write key.path=value, such as train.max_steps=300",
        "'=4' is not a setting: write key.path=value, such as train.max_steps=300",
        "train.batch_size='many': input should be a valid integer, unable to parse string as an integer"
        "  [Examples per micro-batch; auto (or 0) = the largest power of two that fits into memory, found once "
        "per run.]",
        "train.beta1=1.5: input should be less than 1  [AdamW: decay of the running mean of gradients.]",
        "unknown setting train.max_stepz: did you mean train.max_steps?",
        "data.seq_len=512 is longer than model.shape.block_size=256: lower the one or raise the other",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config("quickstart", overrides=words)
    assert sorted(caught.value.problems) == sorted(expected)
    assert str(caught.value) == "\n".join(["6 problems in the settings:", *(f"  - {p}" for p in caught.value.problems)])


def test_problems_of_the_file_and_of_the_words_come_together(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {seed: -1}\ndate: {seq_len: 9}\n")
    problems = problems_of("train.beta2=7", file=file)
    assert sorted(p.split(":")[0] for p in problems) == [
        "train.beta2=7", "train.seed=-1", "unknown setting date.seq_len",
    ]  # fmt: skip


def test_one_problem_is_one():
    with pytest.raises(ConfigError, match=r"^1 problem in the settings:\n  - unknown setting train\.sed: did you mean"):
        load_config(overrides=["train.sed=1"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("train.max_stepz", "train.max_steps"),
        ("max_steps", "train.max_steps"),
        ("n_layer", "model.shape.n_layer"),
        ("model.n_layer", "model.shape.n_layer"),
        ("data.batch_size", "train.batch_size"),
        ("train.seq_len", "data.seq_len"),
        ("rundir", "run_dir"),
    ],
)
def test_an_unknown_setting_comes_with_the_nearest_known_one(given, meant):
    assert problems_of(f"{given}=1") == [f"unknown setting {given}: did you mean {meant}?"]


@pytest.mark.parametrize(
    ("given", "meant"), [("train.block_size", "model.shape.block_size"), ("train.vocab_size", "data.vocab_size")]
)
def test_a_known_name_in_the_wrong_group_is_nearer_than_a_similar_name(given, meant):
    assert problems_of(f"{given}=64") == [f"unknown setting {given}: did you mean {meant}?"]


def test_an_unknown_setting_like_no_other_comes_with_all_of_them():
    assert problems_of("qqqqqqqqqqqq=1") == [
        f"unknown setting qqqqqqqqqqqq: known: {', '.join(row[0] for row in field_table())}"
    ]


def test_an_unknown_group_is_told_by_its_settings():
    problems = problems_of("modle.shape.n_layer=2", "modle.kind=gpt")
    assert problems == [
        "unknown setting modle.shape.n_layer: did you mean model.shape.n_layer?",
        "unknown setting modle.kind: did you mean model.kind?",
    ]


@pytest.mark.parametrize("text", ["modle: {}", "train: {extra: {}}", "modle: {a: {}}"])
def test_an_unknown_group_without_settings_is_unknown_all_the_same(text):
    with pytest.raises(ConfigError, match="unknown setting"):
        parse_config(text)


@pytest.mark.parametrize("text", ["1: 2", "on: 3", "train: {1: 2}"])
def test_a_key_that_is_no_word_is_one_problem(text):
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("given", "hint"), [("quikstart", "quickstart"), ("gpt_small", "gpt-small")])
def test_a_wrong_preset_comes_with_the_nearest(given, hint):
    with pytest.raises(ConfigError, match=f"unknown preset {given}: did you mean {hint}\\?"):
        load_config(given)


@pytest.mark.parametrize("given", ["zzz", "", "../presets/debug"])
def test_a_preset_is_only_found_by_name(given):
    with pytest.raises(ConfigError, match=f"unknown preset {re.escape(given)}: "):
        load_config(given)


@pytest.mark.parametrize("word", ["train.max_steps", "=3", "", "--verbose"])
def test_a_word_that_is_no_setting(word):
    assert problems_of(word) == [f"{word!r} is not a setting: write key.path=value, such as train.max_steps=300"]


@pytest.mark.parametrize("key", ["train.", ".max_steps", "train..max_steps", "train.max_steps.x", "."])
def test_a_key_with_a_missing_or_extra_part(key):
    assert len(problems_of(f"{key}=3")) == 1


# -- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"train: {max_steps: [", "{path} is not YAML: while parsing"),
        (b"a: b: c\n", "{path} is not YAML: mapping values are not allowed here"),
        (b"a: \x07\n", "{path} is not YAML: unacceptable character"),
        (b"a: !!python/object:os.system {}\n", "{path} is not YAML: could not determine a constructor"),
        (b"run_dir: 2026-13-45\n", "{path} is not YAML: "),
        (b"- a\n- b\n", "{path} must hold `key: value` lines, not a list"),
        (b"just words\n", "{path} must hold `key: value` lines, not a str"),
        (b"42\n", "{path} must hold `key: value` lines, not a int"),
        ("é: 1\n".encode("latin-1"), "{path} cannot be read: 'utf-8' codec can't decode byte 0xe9 in position 0"),
    ],
)
def test_a_file_that_cannot_be_used(content, text, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    problems = problems_of(file=path)
    assert len(problems) == 1
    assert problems[0].startswith(text.format(path=path))
    assert "\n" not in problems[0]


def test_a_file_that_is_not_there(tmp_path):
    assert problems_of(file=tmp_path / "none.yaml") == [f"no file {tmp_path / 'none.yaml'}"]


def test_a_folder_is_not_a_file(tmp_path):
    assert problems_of(file=tmp_path)[0].startswith(f"{tmp_path} cannot be read: ")


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbftrain: {seed: 1337}\n"])
def test_a_file_that_says_nothing_new_gives_the_defaults(content, tmp_path):
    (tmp_path / "settings.yaml").write_bytes(content)
    assert load_config(file=tmp_path / "settings.yaml") == load_config()


def test_a_text_that_is_no_yaml_is_told_as_the_settings():
    with pytest.raises(ConfigError, match="the settings is not YAML: "):
        parse_config("a: [")


def test_loading_settings_imports_nothing_heavy():
    code = (
        "import sys, utils.config.load as load; load.load_config('quickstart'); "
        "print(sorted({'torch', 'numpy', 'tokenizers', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
