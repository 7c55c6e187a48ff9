"""The names of the laws and their settings."""

import inspect

import pytest
from sklearn.base import clone

import flatmin.noise
from flatmin.noise import METHODS, GaussianLaw, NoiseLaw, make_noise_law

NAMES = [
    "gd",
    "sgd",
    "gld_const",
    "gld_dynamic",
    "gld_diagonal",
    "gld_leading",
    "gld_hessian",
    "gld_first_eigenvector",
    "gld_full",
    "gld_fisher",
    "gld_ggn",
    "gld_random_subspace",
    "gld_shuffled",
    "projected",
    "svag",
    "bernoulli",
    "alpha_stable",
    "label_noise",
    "anti_pgd",
    "sam",
    "gradient_penalty",
]
# The laws that use H or G, which are dear.
REFRESHED_RARELY = {
    "gld_hessian",
    "gld_first_eigenvector",
    "gld_ggn",
    "gld_random_subspace",
    "gld_shuffled",
    "projected",
    "label_noise",
}
OF_OWN_SIZE = {
    *("sgd", "gld_const", "gld_leading", "gld_fisher", "projected", "bernoulli"),
    "label_noise",
}
DEFAULTS = {
    "match_every": 50,
    "batch_size": None,
    "n_components": None,
    "noise_scale": 1.0,
    "sigma": 1e-3,
    "tol": 1e-2,
    "sampling": "replacement",
    "source": "minibatches",
    "alpha": 1.5,
    "rho": 0.05,
    "flip_probability": 0.1,
    "centred": True,
    "n_substeps": 4,
    "law": None,
    "keep": "top",
    "on": "noise",
    "weight": 0.01,
    "norm": "full",
}
every_method = pytest.mark.parametrize("name", METHODS)


def test_the_methods_of_the_design():
    assert list(METHODS) == NAMES


@every_method
def test_a_name_makes_its_law(name):
    law = make_noise_law(name)
    assert type(law) is METHODS[name]
    assert isinstance(law, NoiseLaw)
    assert law.name == name


@every_method
def test_a_law_is_public(name):
    public = METHODS[name].__name__
    assert public in flatmin.noise.__all__
    assert getattr(flatmin.noise, public) is METHODS[name]


def test_all_names_exist_once():
    names = flatmin.noise.__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(flatmin.noise, name) for name in names)
    assert issubclass(GaussianLaw, NoiseLaw)


@every_method
def test_defaults(name):
    law = make_noise_law(name)
    assert law.refresh_every == (10 if name in REFRESHED_RARELY else 1)
    for setting, value in law.get_params().items():
        if setting == "match":
            assert value == ("none" if name in OF_OWN_SIZE else "trace")
        elif name == "gld_const" and setting in ("sigma", "temperature"):
            assert value is None  # 1e-3, where there is no temperature
        elif name == "label_noise" and setting == "sigma":
            assert value == 0.1  # in units of y
        elif setting != "refresh_every":
            assert value == DEFAULTS[setting]


@every_method
def test_settings_are_plain_parameters(name):
    law = make_noise_law(name)
    parameters = inspect.signature(type(law)).parameters.values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters if p.name != "law")
    for setting in law.get_params():
        marker = object()
        changed = type(law)(**{setting: marker})
        assert changed.get_params()[setting] is marker, "assigned, not checked"
        assert (
            make_noise_law(name).set_params(**{setting: 1}).get_params()[setting] == 1
        )
    assert clone(law).get_params() == law.get_params()


@every_method
def test_the_docstring_lists_the_settings(name):
    text = inspect.getdoc(METHODS[name])
    settings = METHODS[name]._get_param_names()
    listed = [
        line.split(" : ")[0]
        for line in text.partition("Parameters\n----------\n")[2].splitlines()
        if " : " in line and not line.startswith(" ")
    ]
    assert sorted(listed) == sorted(settings)


def test_settings_reach_the_law():
    law = make_noise_law("gld_leading", batch_size=7, source="examples")
    assert (law.batch_size, law.source) == (7, "examples")
    assert repr(law) == "GLDLeading(batch_size=7, source='examples')"
