"""The settings: every key, its type, its default and its meaning.

The configuration reference (docs/configuration.md) is generated from here by tools/reference.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from daemon.config.alerts import Alerts
from daemon.config.audit import Audit
from daemon.config.base import Settings
from daemon.config.tls import CertificateIdentity, MaybeTls, ServerTls
from daemon.config.values import (
    AETitle,
    BodyPart,
    Device,
    Folder,
    Host,
    LastingFolder,
    LedgerUrl,
    Modality,
    Model,
    Name,
    PeerTitle,
    Port,
    RemoteHost,
    View,
)
from daemon.config.web import MaybeWeb

ResultKind = Literal["SEG", "SC", "SR", "PR"]
ProfileName = Literal["ohif", "pacs-with-gsps", "sc-only", "all"]

# The kinds of result that a common viewer shows; a profile stands for `results`.
PROFILES: dict[str, tuple[ResultKind, ...]] = {
    # OHIF 3.13 shows no presentation states.
    "ohif": ("SEG", "SC", "SR"),
    "pacs-with-gsps": ("SC", "PR"),
    "sc-only": ("SC",),
    "all": ("SEG", "SC", "SR", "PR"),
}


class Peer(Settings):
    """A system that may associate with the node."""

    ae_title: PeerTitle = Field(description="The calling AE title that the peer sends.")
    host: RemoteHost | None = Field(
        default=None,
        description="The address that the peer associates from; null admits any address.",
    )
    priority: Literal["stat", "routine"] = Field(
        default="routine",
        description="How urgent the peer's images are unless a C-STORE asks for HIGH or LOW: "
        "images of a `stat` peer are analysed before others.",
    )
    certificate: CertificateIdentity | None = Field(
        default=None,
        description="Ties the peer to its certificate: the peer is admitted only over TLS, with a "
        "certificate that matches. null: only AE title and address are checked.",
    )
    associations: Annotated[int, Field(ge=1, le=400, strict=True)] | None = Field(
        default=None,
        description="How many associations the peer may have open at a time. null: half of "
        "`limits.associations` if several systems may associate, else all of them.",
    )


class AssociationLimits(Settings):
    """How long a peer may keep the node waiting, and how many associations there may be."""

    idle_s: Annotated[float, Field(ge=1, le=86400, strict=True)] = Field(
        default=60,
        description="Seconds without a PDU after which the node aborts an association. Raise it "
        "for a modality that keeps its association open between exposures.",
    )
    request_s: Annotated[float, Field(ge=1, le=86400, strict=True)] = Field(
        default=30,
        description="Seconds that a connection may take to ask for an association.",
    )
    pdu_s: Annotated[float, Field(ge=1, le=86400, strict=True)] = Field(
        default=30,
        description="Seconds that one PDU may take from its first byte to its last; also the "
        "seconds that a peer may leave an answer unread.",
    )
    associations: Annotated[int, Field(ge=1, le=400, strict=True)] = Field(
        default=64,
        description="How many associations may be open at a time. Further requests are rejected "
        "with 2/3/2 (local limit exceeded). A peer that holds no association is still admitted if "
        "another peer holds more than half: that peer then loses its least productive association.",
    )


class DestinationSettings(Settings):
    """The keys of every destination: a name, and the kinds of result that it is owed."""

    name: Name = Field(
        description="The destination's name in the ledger. A renamed destination counts as a new "
        "destination."
    )
    results: tuple[ResultKind, ...] = Field(
        default=("SEG", "SC"),
        min_length=1,
        description="The kinds of result that the destination gets. SEG: the segmentation of a "
        "positive. SC: the overlay, for every image that is reported. SR: the structured report, "
        "for every image that is reported. PR: a presentation state with the contours of a "
        "positive. An SR refers to its SEG if every destination that takes SR takes SEG too.",
    )
    profile: ProfileName | None = Field(
        default=None,
        description="In place of `results`, the kinds that a common viewer shows. "
        + " ".join(f"`{name}`: {', '.join(kinds)}." for name, kinds in PROFILES.items()),
    )

    @model_validator(mode="before")
    @classmethod
    def _profile_stands_for_results(cls, value: Any) -> Any:
        # The field's own check reports an absent, null or unknown profile.
        if not isinstance(value, dict) or value.get("profile") not in [*PROFILES]:
            return value

        if "results" in value:
            raise ValueError("results or profile, not both: a profile is a list of results")

        rest = {key: item for key, item in value.items() if key != "profile"}
        return rest | {"results": PROFILES[value["profile"]]}

    @model_validator(mode="after")
    def _each_kind_once(self) -> DestinationSettings:
        if len(set(self.results)) < len(self.results):
            raise ValueError("results that name each kind once")
        return self


class DicomDestination(DestinationSettings):
    """An archive that takes results by C-STORE."""

    ae_title: AETitle = Field(description="The AE title that the archive is called by.")
    host: RemoteHost = Field(description="The archive's host name or address.")
    port: Port = Field(description="The archive's DICOM port.")
    tls: MaybeTls = Field(
        default=None,
        description="`true`: TLS toward the archive with every default below. null or `false`: "
        "without TLS.",
    )
    commitment: bool = Field(
        default=False,
        description="Ask the archive for storage commitment (PS3.4 Annex J). A result is then "
        "done when the archive has committed to it, and is sent again when the archive reports "
        "it lost. The archive must know the node's AE title, host and port to report.",
    )


class FolderDestination(DestinationSettings):
    """A folder that takes results as files."""

    folder: Folder = Field(
        description="The folder. It is created on first use. If it is absent later, the node waits "
        "for it, as for an archive that is down: a share may be unmounted."
    )


def _destination_kind(value: Any) -> str:
    is_folder = (
        "folder" in value if isinstance(value, dict) else isinstance(value, FolderDestination)
    )
    return "<folder>" if is_folder else "<dicom>"


Destination = Annotated[
    Annotated[DicomDestination, Tag("<dicom>")] | Annotated[FolderDestination, Tag("<folder>")],
    Discriminator(_destination_kind),
]


class Admission(Settings):
    """Which images are analysed; inference/admission.py applies it.

    Every other image is recorded with its reason (docs/monitor.md lists the reasons).
    """

    modalities: tuple[Modality, ...] = Field(
        default=("CR", "DX"),
        min_length=1,
        description="Values of Modality (0008,0060) that are analysed.",
    )
    body_parts: tuple[BodyPart, ...] = Field(
        default=("CHEST", "THORAX"),
        min_length=1,
        description="Values of Body Part Examined (0018,0015) that are analysed.",
    )
    views: tuple[View, ...] = Field(
        default=("AP", "PA"),
        min_length=1,
        description="Values of View Position (0018,5101) that are analysed.",
    )
    minimum_age_years: Annotated[int, Field(ge=0, le=150, strict=True)] = Field(
        default=18,
        description="Years. An image of a younger patient is reported as not analysed.",
    )
    when_absent: Literal["admit", "refuse"] = Field(
        default="admit",
        description="What an absent or implausible header value means. `admit`: analyse the "
        "image and note the value in the result. `refuse`: do not analyse it.",
    )
    for_processing: bool = Field(
        default=False,
        description="Analyse raw DX images (For Processing) too. Their sender usually sends the "
        "same exposure as a picture.",
    )


class Retention(Settings):
    """How long bytes stay in the spool after their last delivery.

    Nothing is removed before every destination with `commitment` has committed. The ledger's rows
    stay, so that an image that arrives again is still known.
    """

    keep_days: Annotated[float, Field(ge=0, strict=True)] = Field(
        default=14, description="Days that images and results stay after they are done."
    )
    keep_failed_days: Annotated[float, Field(ge=0, strict=True)] = Field(
        default=60,
        description="Days that failed images and refused results stay, for `pleura retry`.",
    )
    free_mb: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=2048,
        description="Megabytes. With less free beside the spool, finished bytes are removed "
        "early, oldest first. 0: never early. More than `spool_reserve_mb`, so that bytes are "
        "removed before images are refused.",
    )


class Overlay(Settings):
    """The pixels of the Secondary Capture. A change gives new results new UIDs."""

    longest_side_px: Annotated[int, Field(ge=512, le=16384, strict=True)] | None = Field(
        default=2048,
        description="Pixels of the overlay's longest side; null keeps the size of the X-ray. "
        "The default keeps the object small.",
    )
    jpeg_quality: Annotated[int, Field(ge=50, le=100, strict=True)] = Field(
        default=90, description="The JPEG quality of the overlay."
    )


class Shadow(Settings):
    """A second model that answers the same images, for comparison only (docs/shadow.md)."""

    model: Model = Field(
        description="The folder or zip of the shadow's model package. Its answers are compared "
        "with those of `model`, and never sent."
    )
    device: Device = Field(
        default="cpu",
        description="The device that runs the shadow. The default leaves a GPU's memory to "
        "`model`.",
    )


class Config(Settings):
    """Everything a role needs to know, valid once constructed.

    config/pleura.yaml lists the same defaults.
    """

    ae_title: AETitle = Field(default="PLEURA", description="The node's AE title.")
    host: Host = Field(
        default="0.0.0.0",  # noqa: S104 - a node on a network; `peers` says who may talk to it
        description="The address that the node listens on. The default listens on every IPv4 "
        "address, `::` on every address of IPv4 and IPv6.",
    )
    port: Port | None = Field(
        default=11112,
        description="The TCP port that the node listens on. 104 is DICOM's registered port, but "
        "ports below 1024 need privileges, so the default is 11112, registered for DICOM too. "
        "null: no plain port, only the TLS port.",
    )
    tls: ServerTls | None = Field(
        default=None,
        description="DICOM over TLS, in the profiles of PS3.15 Annex B. null: no TLS port.",
    )
    peers: tuple[Peer, ...] = Field(
        default=(),
        description="The systems that may associate with the node. While the list is empty, only "
        "systems on this machine (loopback) may.",
    )
    limits: AssociationLimits = Field(
        default=AssociationLimits(), description="How long a peer may keep the node waiting."
    )
    destinations: tuple[Destination, ...] = Field(
        default=(),
        description="Where results go. While the list is empty, images are analysed and nothing is "
        "sent.",
    )
    admission: Admission = Field(default=Admission(), description="Which images are analysed.")
    overlay: Overlay = Field(
        default=Overlay(), description="The pixels of the Secondary Capture overlay."
    )
    report_absent: bool = Field(
        default=False,
        description='"Not detected" says in an SR that this does not exclude pneumothorax. '
        "`true` also codes it as Absent (272519000 SCT), which machines read as a negative. That "
        "is a site's decision: no model of ours was shown to rule out pneumothorax.",
    )
    model: Model = Field(
        default="default",
        description="`default`, the model that ships with Pleura, or the folder or zip of a model "
        "package (docs/models.md). After a change of the package, run `pleura reload`.",
    )
    device: Device = Field(
        default="auto",
        description="The device that runs the model. `auto`: the first CUDA device, else the CPU.",
    )
    engine: Literal["auto", "torch", "compile", "openvino", "onnxruntime"] = Field(
        default="auto",
        description="The program that runs the networks. `torch`: plain torch in 32-bit floats. "
        "`openvino` and `onnxruntime`: CPU engines (pip install "
        "'pleura[openvino,onnxruntime]'). `compile`: torch.compile, which needs a C++ compiler "
        "at run time and a minute or more at each start. `auto`: torch at first, then the "
        "fastest of torch and the installed engines, without torch.compile. An engine that "
        "disagrees with torch by more than 0.001 is dropped with a warning, and torch goes on. "
        "`auto` also uses 16-bit floats (bf16) if the model package carries the validation that "
        "allows it.",
    )
    shadow: Shadow | None = Field(
        default=None,
        description="A second model that answers the same images in a separate process while no "
        "image waits (docs/shadow.md). null: no shadow. A change needs a restart of the shadow "
        "role, and then a reload.",
    )
    max_batch: Annotated[int, Field(ge=1, le=256, strict=True)] = Field(
        default=4,
        description="The most images that are analysed together. On a CPU, larger batches are no "
        "faster and take more memory (docs/benchmarks.md). A GPU may gain from them.",
    )
    spool: LastingFolder = Field(
        default="/var/lib/pleura/spool",
        validate_default=True,
        description="The folder in which images and results stay until they are delivered: on a "
        "local disk, never on a memory file system.",
    )
    spool_reserve_mb: Annotated[int, Field(ge=0, strict=True)] = Field(
        default=256,
        description="Megabytes. With less free beside the spool, a C-STORE request is answered "
        "0xA700 (out of resources).",
    )
    retention: Retention = Field(
        default=Retention(), description="How long bytes stay in the spool."
    )
    ledger: LedgerUrl = Field(
        default="sqlite:////var/lib/pleura/ledger.db",
        # It may hold a password: no traceback shows it.
        repr=False,
        description="The database that holds every state. SQLite serves one machine and never "
        "lies on a network file system; PostgreSQL serves several machines.",
    )
    ledger_file: Folder | None = Field(
        default=None,
        description="A file that holds the value of `ledger`, for a URL with a password: then only "
        "this file must be kept secret. The environment variables PLEURA_LEDGER (the value) and "
        "PLEURA_LEDGER_FILE (a file, such as a systemd credential) override both keys.",
    )
    inbox: Folder | None = Field(
        default=None,
        description="A folder whose files are received as if they had been sent; null: no inbox.",
    )
    audit: Audit | None = Field(
        default=None,
        description="The audit trail (IHE ATNA, PS3.15 A.5). null: no audit trail.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The lowest severity that is logged."
    )
    alerts: Alerts | None = Field(
        default=None,
        description="Alerts by mail and to a webhook, sent by the deliver role (docs/monitor.md). "
        "null: no alerts.",
    )
    log_format: Literal["console", "json"] = Field(
        default="console",
        description="The form of log lines. `console`: for people. `json`: one JSON object a "
        "line, for machines.",
    )
    web: MaybeWeb = Field(
        default=None,
        description="The operator's page. `true`: on 127.0.0.1 with every default below. null or "
        "`false`: no page.",
    )

    @model_validator(mode="after")
    def _each_destination_has_its_own_name(self) -> Config:
        names = [destination.name for destination in self.destinations]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"destinations: the name {repeated[0]!r} is given twice; deliveries are owed by "
                "name"
            )
        return self

    @model_validator(mode="after")
    def _there_is_a_port(self) -> Config:
        if self.port is None and self.tls is None:
            raise ValueError("port: found null; allowed: a port, or null where `tls` names one")
        if self.tls is not None and self.tls.port == self.port:
            raise ValueError(
                f"tls.port: found {self.port}, which is `port`; give TLS a port of its own"
            )
        return self

    @model_validator(mode="after")
    def _tied_peers_present_certificates(self) -> Config:
        are_asked = self.tls is not None and self.tls.client != "none"
        tied = [peer.ae_title for peer in self.peers if peer.certificate is not None]
        if tied and not are_asked:
            raise ValueError(
                f"peers: found {tied[0]} tied to a certificate, and no peer is asked for one; "
                "allowed: with `tls`, and `client` required or optional"
            )
        return self

    @model_validator(mode="after")
    def _the_page_has_its_own_port(self) -> Config:
        if self.web is not None and self.web.port in self.ports():
            raise ValueError(
                f"web.port: found {self.web.port}, on which the node listens for DICOM; give the "
                "page a port of its own"
            )
        return self

    def ports(self) -> tuple[int, ...]:
        """Every DICOM port that the node listens on, the plain port first."""
        tls_port = None if self.tls is None else self.tls.port
        return tuple(port for port in (self.port, tls_port) if port is not None)

    @model_validator(mode="after")
    def _room_is_made_before_it_is_refused(self) -> Config:
        if 0 < self.retention.free_mb <= self.spool_reserve_mb:
            raise ValueError(
                f"retention.free_mb: found {self.retention.free_mb}; allowed: more than "
                f"spool_reserve_mb ({self.spool_reserve_mb}), so that bytes are removed before "
                "images are refused; or 0: never early"
            )
        return self

    def committing(self) -> tuple[DicomDestination, ...]:
        """The destinations that are asked for storage commitment."""
        return tuple(
            destination
            for destination in self.destinations
            if isinstance(destination, DicomDestination) and destination.commitment
        )

    def refers_to_segmentation(self) -> bool:
        """True if every destination that takes SR also takes SEG, so no reference dangles."""
        return all(
            "SEG" in destination.results
            for destination in self.destinations
            if "SR" in destination.results
        )

    def owed(self) -> dict[str, tuple[str, ...]]:
        """The kinds of result that each destination is owed, by its name."""
        return {destination.name: destination.results for destination in self.destinations}
