"""Recipes and what the command line sets on top."""

import pytest
import torch
import yaml
from mmf_deploy.training.objective_config import OBJECTIVES, Objective
from mmf_deploy.training.read_recipe import load_config
from mmf_deploy.training.recipe_files import recipe_names

from mmf_deploy.errors import ConfigError
from mmf_deploy.nn.build import build_network
from mmf_deploy.spec import SampleSpec

# what the data of a recipe would be, where it is not at hand
ABSENT = {
    "cifar10": SampleSpec(shape=(3, 32, 32), classes=10),
    "cifar10-paper": SampleSpec(shape=(3, 32, 32), classes=10),
    "cifar10-small": SampleSpec(shape=(3, 32, 32), classes=10),
    "folder": SampleSpec(shape=(3, 32, 32)),
    "imagenet64": SampleSpec(shape=(3, 64, 64), classes=1000),
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_its_network_builds(name):
    config = load_config(name)
    spec = config.fit(ABSENT[name] if name in ABSENT else config.load_data().spec)
    with torch.device("meta"):
        network = build_network(spec, config.network.model_dump())
    assert sum(p.numel() for p in network.parameters())
    assert spec.guided == (config.objective.guidance.mode == "input")


@pytest.mark.parametrize("name", ABSENT)
def test_a_recipe_without_its_data_says_what_is_missing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    set_ = [] if name in ("folder", "imagenet64") else ["data.download=never"]
    with pytest.raises(ConfigError, match=r"images|imagenet/train|CIFAR10|cifar-10"):
        load_config(name, set_).load_data()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["augment={probability: 0.1}"], "set network.augment_dim=6 (now 0)"),
        (["objective.tangent=ema", "loop.ema=[]"], "needs an average; set loop.ema"),
        (["augment={probabilty: 0.1}"], "did you mean 'augment.probability'?"),
        (["loop.recovery.max_skiped=3"], "did you mean 'loop.recovery.max_skipped'?"),
        (["objective.guidance.mode=fixd"], "objective.guidance.mode = 'fixd'"),
        (["loop.precision=fp64"], "loop.precision = 'fp64'"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(sets, message):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", sets)
    assert message in str(caught.value)


def test_a_recipe_of_another_task_is_refused_by_its_network():
    config = load_config("ring2d", ["data={source: digits}"])
    with pytest.raises(ConfigError, match="does not fit samples of shape"):
        build_network(config.load_data().spec, config.network.model_dump())
    config = load_config("digits", ["data={source: ring2d}", "evaluate=null"])
    with pytest.raises(ConfigError, match="does not fit samples of shape"):
        build_network(config.load_data().spec, config.network.model_dump())


def test_set_overrides_nested_keys_with_yaml_values():
    config = load_config("digits", ["objective.lam=0.5", "loop.ema=[0.9, 0.99]", "seed=7"])
    assert config.objective.lam == 0.5
    assert config.loop.ema == (0.9, 0.99)
    assert config.seed == 7


@pytest.mark.parametrize("key", ["objective", "objective.name"])
@pytest.mark.parametrize("recipe", ["digits", "cifar10"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_named_on_the_command_line_is_what_its_name_says(name, recipe, key):
    before = load_config(recipe).objective
    named = load_config(recipe, [f"{key}={name}"]).objective
    alone = Objective(name=name)
    for part, preset in OBJECTIVES[name].items():
        keys = preset if isinstance(preset, dict) else ()
        for k in keys:
            assert getattr(getattr(named, part), k) == getattr(getattr(alone, part), k)
        if not keys:
            assert getattr(named, part) == getattr(alone, part)
    # and everything else is the recipe's
    assert named.warmup_steps == before.warmup_steps
    assert named.time_pairs.t_std == before.time_pairs.t_std
    if "guidance" not in OBJECTIVES[name]:
        assert named.guidance == before.guidance


def test_what_is_set_after_an_objective_was_named_wins():
    sets = ["objective=paper-literal", "objective.time_pairs.min_gap=0.2", "objective.lam=0.5"]
    found = load_config("cifar10", sets).objective
    assert (found.name, found.lam, found.time_pairs.min_gap) == ("paper-literal", 0.5, 0.2)
    assert found.time_pairs.gap_fraction == 1.0


def test_a_section_that_is_null_can_be_set_into():
    content = load_config("digits").model_dump(mode="json")
    assert content["augment"] is None
    sets = ["augment.flip=0", "network.augment_dim=6"]
    assert load_config("digits", sets).augment.flip == 0


@pytest.mark.parametrize("sets", ["objective.guidance.mode=off", "objective.guidance={mode: off}"])
def test_off_is_a_word_although_yaml_takes_it_for_false(sets):
    assert load_config("digits", [sets]).objective.guidance.mode == "off"


def test_an_objective_may_be_named_alone():
    config = load_config("digits", ["objective=meanflow"])
    assert (config.objective.name, config.objective.tangent) == ("meanflow", "conditional")
    assert config.model_validate(config) == config


def test_what_is_written_wins_over_what_the_name_presets():
    config = load_config("digits", ["objective.name=meanflow", "objective.lam=0.25"])
    assert (config.objective.tangent, config.objective.lam) == ("conditional", 0.25)
    config = load_config(
        "digits", ["objective.name=flow-matching", "objective.time_pairs.t_mean=0.5"]
    )
    assert config.objective.time_pairs.gap_fraction == 0
    assert config.objective.time_pairs.t_mean == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.lamda=1", "unknown key 'objective.lamda' (did you mean 'objective.lam'?)"),
        ("looop.steps=1", "unknown key 'looop' (did you mean 'loop'?)"),
        ("network.model_chanels=8", "did you mean 'network.model_channels'?"),
        ("objective.time_pairs.gap_fracton=1", "did you mean 'objective.time_pairs.gap_fraction'?"),
        ("data.source=digts", "judges digits, but data.source is 'digts'"),
        ("loop.ema=[2.0]", "loop.ema"),
        ("loop.ema=[0.9, 0.9000000001]", "expected different decays"),
        ("objective.name=[1]", "objective.name [1]"),
        ("objective=7", "objective.name 7"),
        ("objective=null", "objective.name None"),
        ("data.size=3", "unknown key 'data.size'"),
        ("loop.steps=-1", "loop.steps = -1"),
        ("loop.steps=many", "loop.steps = 'many'"),
        ("optimizer.lr=0", "optimizer.lr = 0"),
        ("objective.name=mmff", "objective.name 'mmff' (did you mean 'mmf'?)"),
        ("objective.tangent=none", "objective.tangent = 'none'"),
        ("steps", "expected key.path=value"),
        ("loop.steps.deep=1", "'steps' is a value, not a section"),
        ("loop=[", "not valid YAML"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_nearest_valid_one(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config("digits", [override]).load_data()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'digits'"):
        load_config("digit")


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_config(str(path))


def test_a_recipe_file_of_ones_own_is_read(tmp_path):
    content = load_config("digits").model_dump(mode="json")
    content["name"] = "mine"
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert load_config(str(path)).name == "mine"
    with pytest.raises(ConfigError, match="no such recipe file"):
        load_config(str(tmp_path / "missing.yaml"))
