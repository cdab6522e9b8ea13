"""YAML -> one frozen Config: the only reader of settings. Every error is told at once."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ResultKind = Literal["SEG", "SC", "SR", "PR"]
ProfileName = Literal["ohif", "pacs-with-gsps", "sc-only", "all"]
# What a common viewer makes something of; it stands for `results`.
PROFILES: dict[str, tuple[ResultKind, ...]] = {
    "ohif": ("SEG", "SC", "SR"),  # 3.13 shows no presentation states
    "pacs-with-gsps": ("SC", "PR"),
    "sc-only": ("SC",),
    "all": ("SEG", "SC", "SR", "PR"),
}


class ConfigError(Exception):
    """The settings cannot be used. The message lists every error: key, value found, what is allowed."""


def _application_entity_title(value: str) -> str:
    # PS3.5 Table 6.2-1, AE: 16 characters of the default repertoire, no backslash, no control characters.
    if not re.fullmatch(
        r"[\x21-\x5b\x5d-\x7e](?:[\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?", value
    ):
        raise ValueError("1 to 16 printable ASCII characters, no backslash, no blank at either end")
    return value


def _built_later(value: Any) -> None:
    if value is not None:
        raise ValueError("not in this version: only null")


def _ledger_url(value: str) -> str:
    try:
        backend = make_url(value).get_backend_name()
    except ArgumentError:
        backend = ""
    if backend not in ("sqlite", "postgresql"):
        raise ValueError("sqlite:////absolute/path or postgresql+psycopg://user@host/database")
    if backend == "sqlite" and make_url(value).database in (None, "", ":memory:"):
        raise ValueError("sqlite:////absolute/path: the roles are processes and share one file")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", value):
        try:
            ipaddress.ip_address(value)
        except ValueError:
            raise ValueError("a host name or an IP address") from None
    return value


def _device(value: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", value):
        raise ValueError("auto, cpu, cuda or cuda:N")
    return value


AETitle = Annotated[str, AfterValidator(_application_entity_title)]
Host = Annotated[str, AfterValidator(_host)]
Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Later = Annotated[None, BeforeValidator(_built_later)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Peer(_Settings):
    """Who may associate: its AE title, its address (None: any), and how urgent its images are."""

    ae_title: AETitle
    host: Host | None = None
    priority: Literal["stat", "routine"] = "routine"


class _Receiver(_Settings):
    """Who gets which kinds of result: listed, or by a profile, which `results` then spells out."""

    name: Name
    results: tuple[ResultKind, ...] = Field(default=("SEG", "SC"), min_length=1)
    profile: ProfileName | None = None

    @model_validator(mode="before")
    @classmethod
    def _profile_stands_for_results(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("profile") not in PROFILES:
            return value  # absent, null or no profile's name: that is the field's own business
        if "results" in value:
            raise ValueError("results or profile, not both: a profile is a list of results")
        return {key: each for key, each in value.items() if key != "profile"} | {
            "results": PROFILES[value["profile"]]
        }

    @model_validator(mode="after")
    def _each_kind_once(self) -> _Receiver:
        if len(set(self.results)) < len(self.results):
            raise ValueError("results that name each kind once")
        return self


class DicomDestination(_Receiver):
    """An archive that takes results by C-STORE."""

    ae_title: AETitle
    host: Host
    port: Port
    commitment: bool = False  # ask it whether it keeps what it stored (PS3.4 Annex J)


class FolderDestination(_Receiver):
    """A folder that takes results as files."""

    folder: Path


def _destination_kind(value: Any) -> str:
    folder = "folder" in value if isinstance(value, dict) else isinstance(value, FolderDestination)
    return "<folder>" if folder else "<dicom>"


Destination = Annotated[
    Annotated[DicomDestination, Tag("<dicom>")] | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(_destination_kind),
]


# A Code String as headers have it (PS3.5 6.2, CS): upper case, however it is written in the settings.
CodeString = Annotated[str, AfterValidator(lambda text: text.strip().upper()), Field(min_length=1)]


class Admission(_Settings):
    """Which images are analysed; inference/admission.py applies it."""

    modalities: tuple[CodeString, ...] = ("CR", "DX")
    body_parts: tuple[CodeString, ...] = ("CHEST", "THORAX")
    views: tuple[CodeString, ...] = ("AP", "PA")
    minimum_age_years: Annotated[int, Field(ge=0, le=150)] = 18
    when_absent: Literal["admit", "refuse"] = "admit"
    for_processing: bool = False


class Retention(_Settings):
    """How long bytes are kept once nothing is owed on them, and how much room is kept free. Ledger rows stay."""

    keep_days: Annotated[float, Field(ge=0)] = 14
    keep_failed_days: Annotated[float, Field(ge=0)] = 60
    free_mb: Annotated[int, Field(ge=0)] = 2048


class Overlay(_Settings):
    """What changes the pixels of the Secondary Capture: part of every result's identity."""

    longest_side_px: Annotated[int, Field(ge=512, le=16384)] | None = 2048
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 90


class Config(_Settings):
    """Everything a role needs to know, valid once constructed. Defaults are those of config/pleura.yaml."""

    ae_title: AETitle = "PLEURA"
    host: Host = "0.0.0.0"  # noqa: S104 - a node on a network; peers say who may talk to it
    port: Port = 11112
    tls: Later = None
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    admission: Admission = Admission()
    overlay: Overlay = Overlay()
    report_absent: bool = False
    model: str = Field(default="default", min_length=1)
    device: Annotated[str, AfterValidator(_device)] = "auto"
    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = "auto"
    max_batch: Annotated[int, Field(ge=1, le=256)] = 8
    spool: Path = Path("/var/lib/pleura/spool")
    spool_reserve_mb: Annotated[int, Field(ge=0)] = 256
    retention: Retention = Retention()
    ledger: Annotated[str, AfterValidator(_ledger_url)] = "sqlite:////var/lib/pleura/ledger.db"
    inbox: Path | None = None
    web: Later = None

    @model_validator(mode="after")
    def _destinations_have_one_name_each(self) -> Config:
        names = [destination.name for destination in self.destinations]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"destinations: the name {twice[0]!r} is given twice; deliveries are owed by name"
            )
        return self

    @model_validator(mode="after")
    def _room_is_made_before_it_is_refused(self) -> Config:
        if 0 < self.retention.free_mb <= self.spool_reserve_mb:
            raise ValueError(
                f"retention.free_mb: found {self.retention.free_mb}; allowed: more than spool_reserve_mb "
                f"({self.spool_reserve_mb}), so that bytes are removed before images are refused; or 0: never early"
            )
        return self

    def committing(self) -> tuple[DicomDestination, ...]:
        """The destinations that are asked for storage commitment."""
        return tuple(
            one for one in self.destinations if isinstance(one, DicomDestination) and one.commitment
        )

    def refers_to_segmentation(self) -> bool:
        """May an SR refer to its SEG? Only where each that gets the one gets the other: a reference leads somewhere."""
        return all("SEG" in one.results for one in self.destinations if "SR" in one.results)

    def owed(self) -> dict[str, tuple[str, ...]]:
        """Which destination is owed which kinds of result."""
        return {destination.name: destination.results for destination in self.destinations}


def load(path: Path) -> Config:
    """Read and check one YAML file.

    Raises:
        ConfigError: unreadable, not YAML, or one or more keys wrong; all of them are listed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give a readable UTF-8 YAML file with -c"
        ) from error
    try:
        document = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader below
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: found {type(document).__name__} at the top, wanted keys and values"
        )
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        lines = [_explain(path, document, dict(one)) for one in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def with_device(config: Config, device: str) -> Config:
    """The same settings for another device (`pleura analyse --device`).

    Raises:
        ConfigError: it is no device's name.
    """
    try:
        return Config.model_validate(config.model_dump() | {"device": device})
    except ValidationError as error:
        raise ConfigError(
            f"--device: found {device!r}; allowed: auto, cpu, cuda or cuda:N"
        ) from error


def show(config: Config) -> str:
    """The whole effective configuration as YAML, defaults filled in."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key silently replace an earlier one of the same name; we do not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _explain(path: Path, document: Any, error: dict[str, Any]) -> str:
    keys = [
        part for part in error["loc"] if part not in ("<dicom>", "<folder>")
    ]  # pydantic's, not the file's
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in keys).lstrip(
        "."
    )
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if error["type"] == "extra_forbidden":
        return f"{path}: {where}: unknown key; config/pleura.yaml lists every key there is"
    if error["type"] == "missing":
        return f"{path}: {where}: absent, and it has no default"
    if not where:
        return f"{path}: {message}"
    return f"{path}: {where}: found {_found(document, keys)!r}; allowed: {message}"


def _found(document: Any, keys: list[Any]) -> Any:
    for key in keys:
        try:
            document = document[key]
        except (KeyError, IndexError, TypeError):
            return None
    return document
