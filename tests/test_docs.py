"""What the documentation shows is what the configuration takes."""

import re

import pytest
import yaml

from plsc.config import load
from tests.helpers import CHECKOUT, tiny_digits, write_config

PAGES = ["data.md", "configuration.md", "training.md"]


def blocks():
    for page in PAGES:
        text = (CHECKOUT / "docs" / page).read_text(encoding="utf-8")
        for k, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)):
            yield pytest.param(block, id=f"{page}-{k}")


def merged(base: dict, over: dict) -> dict:
    """As in a recipe with _base_: mappings join, a data set of another name begins anew."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        anew = both and "name" in value and value["name"] != out[key].get("name")
        out[key] = merged(out[key], value) if both and not anew else value
    return out


@pytest.mark.parametrize("block", blocks())
def test_each_yaml_of_the_docs_is_a_valid_part_of_a_recipe(block, tmp_path):
    part = yaml.safe_load(block.replace("[...]", "[]"))
    if "dataset" in part:
        part = {"DataLoader": {"Train": part}}
    part.pop("_base_", None)
    load(str(write_config(tmp_path / "c.yaml", merged(tiny_digits(), part))))
