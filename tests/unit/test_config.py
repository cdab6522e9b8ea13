"""The settings file: every error is reported at once, and the commented file equals the defaults."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import config
from daemon.config import Config, ConfigError
from tools import reference

REPOSITORY = Path(__file__).resolve().parents[2]


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "pleura.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


def test_the_commented_file_holds_every_key_at_its_default() -> None:
    path = REPOSITORY / "config" / "pleura.yaml"
    assert config.load(path) == Config()
    keys = {line.split(":")[0] for line in path.read_text().splitlines() if line[:1].isalpha()}
    assert keys == set(Config.model_fields)


def test_the_reference_page_is_up_to_date() -> None:
    found = reference.PAGE.read_text(encoding="utf-8")
    assert found == reference.page(), "run python -m tools.reference"
    assert max(map(len, found.splitlines())) <= 100


def test_every_key_has_a_meaning_in_the_reference() -> None:
    schema = Config.model_json_schema()
    for model in [schema, *schema["$defs"].values()]:
        for key, value in model["properties"].items():
            assert value.get("description"), f"{model['title']}.{key}"
            assert f"{key}`\n\n" in reference.page()


def test_every_error_is_reported_at_once_with_key_value_and_what_is_allowed(tmp_path: Path) -> None:
    wrong = """
ae_title: A TITLE THAT IS TOO LONG
prot: 104
port: 99999
tls: {certificate: x}
destinations:
  - {name: a, folder: 3, reslts: [SEG]}
  - {name: b, ae_title: X, host: h, port: 1, results: [PDF], commitment: often}
  - {name: c, ae_title: X}
admission: {minimum_age_years: old}
ledger: mysql://somewhere
web: {port: no}
"""

    with pytest.raises(ConfigError) as caught:
        load(tmp_path, wrong)
    lines = str(caught.value).splitlines()

    for key, found in {
        "ae_title": "A TITLE THAT IS TOO LONG",
        "prot": "unknown key",
        "port": "99999",
        "tls.certificate": "'x'",
        "tls.key": "absent",
        "web.port": "no",
        "destinations[0].folder": "3",
        "destinations[0].reslts": "unknown key",
        "destinations[1].results[0]": "'PDF'; allowed: 'SEG', 'SC', 'SR' or 'PR'",
        "destinations[1].commitment": "'often'",
        "destinations[2].host": "absent",
        "admission.minimum_age_years": "'old'",
        "ledger": "mysql://somewhere",
    }.items():
        assert any(f" {key}: " in line and found in line for line in lines), key


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("port: [", "YAML"),
        ("- a\n- b", "keys and values"),
        ("port: 104\nport: 105", "twice"),
        ("destinations: [{name: a, folder: /x}, {name: a, folder: /y}]", "twice"),
        ("ledger: 'sqlite://'", "absolute"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        load(tmp_path, text)


def test_an_absent_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "none.yaml")


def test_settings_that_config_show_prints_load_again(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "peers: [{ae_title: XRAY1, host: 10.0.4.11, priority: stat}]\n"
        "destinations: [{name: pacs, ae_title: A B, host: pacs.local, port: 104, results: [SC]}]\n",
    )
    assert load(tmp_path, config.show(settings)) == settings
    assert settings.owed() == {"pacs": ("SC",)}


def test_a_profile_selects_the_results_for_a_common_viewer(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        "destinations:\n"
        "  - {name: viewer, folder: /a, profile: ohif}\n"
        "  - {name: pacs, ae_title: A, host: h, port: 104, profile: pacs-with-gsps}\n"
        "  - {name: plain, folder: /b, profile: null}\n",
    )
    assert settings.owed() == {
        "viewer": ("SEG", "SC", "SR"),
        "pacs": ("SC", "PR"),
        "plain": ("SEG", "SC"),
    }
    assert load(tmp_path, config.show(settings)) == settings


@pytest.mark.parametrize(
    ("destination", "words"),
    [
        ("{name: a, folder: /x, profile: ohif, results: [SC]}", "not both"),
        ("{name: a, folder: /x, profile: osirix}", r"profile: found 'osirix'; allowed: 'ohif'"),
        ("{name: a, folder: /x, results: [SC, SC]}", "once"),
        ("{name: a, folder: /x, results: []}", "results"),
    ],
)
def test_a_profile_and_results_exclude_each_other(
    tmp_path: Path, destination: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, f"destinations: [{destination}]")


@pytest.mark.parametrize(
    ("second", "refers"), [("[SEG, SR]", True), ("[SR]", False), ("[SC]", True)]
)
def test_an_sr_references_a_seg_only_if_every_destination_takes_both(
    tmp_path: Path, second: str, refers: bool
) -> None:
    text = (
        "destinations: [{name: a, folder: /x, profile: all}, "
        f"{{name: b, folder: /y, results: {second}}}]"
    )
    assert load(tmp_path, text).refers_to_segmentation() is refers


def test_admission_terms_are_normalised_like_header_values(tmp_path: Path) -> None:
    admission = load(
        tmp_path, "admission: {views: [ap, ' pa'], modalities: [dx], body_parts: [Chest]}"
    ).admission
    assert (admission.views, admission.modalities, admission.body_parts) == (
        ("AP", "PA"),
        ("DX",),
        ("CHEST",),
    )
    with pytest.raises(ConfigError, match="views"):
        load(tmp_path, "admission: {views: ['']}")
