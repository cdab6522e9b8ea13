"""How fast an object is accepted: ours with full durability, beside Orthanc and DCMTK's storescp,
in one run.

    python -m benchmarks.receive [--rounds N] [--data DIR] [--folder DIR] [--tls]

Each round sends the same objects to each party, one after another, over 1, 4 and 8 associations at
a time: 15 MB uncompressed, and one of the real JPEG X-rays in DATA. The parties:
- pleura: the receive role as its own process. Before it answers: bytes fsynced, renamed, folder
  fsynced, row committed.
- orthanc: its default configuration, which fsyncs the file before it answers.
- storescp: no fsync; its quickest options (data set written as it comes, a process per association
  beside the first).
- write+fsync: the same bytes written to as many files at a time and fsynced, nothing else.

With `--tls` the parties are pleura plain, pleura over TLS and storescp over TLS; both verify the
sender's certificate, and a handshake for each association is part of its time.

One sender for all: a socket and PDUs that lie ready, as large as the party takes, at most 128 KiB;
TCP_NODELAY for all. A time is the wall clock from the first connect to the last release, divided by
the objects. Before each turn the disk is synced: what storescp and Orthanc have left in memory is
nobody else's time, and not theirs. Prints medians over the rounds in milliseconds per object, and
ratios of medians. What was written is removed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from types import MappingProxyType

import yaml
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from tools.peers.certificates import Authority
from tools.peers.harness import Orthanc
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
ASSOCIATIONS = (1, 4, 8)
TIMEOUT_S = 60.0
PDU_LIMIT_BYTES = 128 * 1024
PLACEHOLDER = "2.25.1" + "0" * 18  # a SOP Instance UID; each object gets its own digits there
CONTEXT_ID = 1
C_STORE_RQ = 0x0001
# For so long ext4 looks for inodes beside those that were just freed, which slows all parties.
RECENT_S = 6.0


@dataclass(frozen=True)
class Sample:
    """One object to send, again and again under new SOP Instance UIDs."""

    name: str
    sop_class_uid: str
    transfer_syntax_uid: str
    data_set: bytes
    per_association: dict[int, int]  # associations at a time -> objects on each
    wanted: dict[str, dict[int, float]]  # rival -> associations -> its time by ours, at least


@dataclass
class Party:
    """One receiver. `kept` counts the objects it has; `forget` removes them."""

    name: str
    called: str
    port: Callable[[int], int]  # by the number of associations
    kept: Callable[[], int]
    forget: Callable[[], None]
    # How the sender reaches it; None: without TLS.
    security: ssl.SSLContext | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(os.environ.get("PLEURA_DATA", REPOSITORY.parent / "shared/data")),
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on a real disk"
    )
    parser.add_argument("--tls", action="store_true", help="TLS beside plain, and storescp's TLS")
    options = parser.parse_args()
    if _file_system(options.folder) in ("tmpfs", "ramfs", "overlay"):
        raise SystemExit(
            f"{options.folder}: {_file_system(options.folder)} found, a real disk wanted; give --folder"
        )
    samples = [_uncompressed(), _xray(options.data / "siim" / "dicom")]
    times: dict[tuple[str, int, str], list[float]] = {}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        parties = _secured(running, folder) if options.tls else _plain(running, folder)
        plain = folder / "plain"
        for number in range(options.rounds + 1):
            for sample in samples:
                for associations in ASSOCIATIONS:
                    senders: dict[str, Callable[[], float]] = {
                        party.name: partial(_send, party, sample, associations) for party in parties
                    }
                    where = plain / f"{sample.name}, {associations}"
                    senders["write+fsync"] = partial(_write, where, sample, associations)
                    turns = list(senders)
                    first = number % len(turns)
                    took = {}
                    for name in turns[first:] + turns[:first]:
                        # What a party left to be written later is not written in the next one's
                        # time.
                        os.sync()
                        took[name] = senders[name]()
                    for name, seconds in took.items() if number else ():  # the first round warms up
                        times.setdefault((sample.name, associations, name), []).append(seconds)
            for party in parties:
                party.forget()
            shutil.rmtree(plain)
            os.sync()
            time.sleep(RECENT_S)
    print(
        f"{options.rounds} rounds, {os.cpu_count()} cores, {_file_system(options.folder)}; milliseconds per object"
    )
    names = [*(party.name for party in parties), "write+fsync"]
    _print(samples, names, {key: statistics.median(values) * 1e3 for key, values in times.items()})


def _print(
    samples: Iterable[Sample], names: list[str], medians: dict[tuple[str, int, str], float]
) -> None:
    print(f"{'object':18} {'assoc.':>6} " + " ".join(f"{name:>11}" for name in names))
    for sample in samples:
        for associations in ASSOCIATIONS:
            took = {name: medians[sample.name, associations, name] for name in names}
            ours = took["pleura"]
            line = f"{sample.name:18} {associations:6} " + " ".join(
                f"{took[name]:11.2f}" for name in names
            )
            if "pleura tls" in took:
                secured = took["pleura tls"]
                line += (
                    f" | tls / plain {secured / ours:.2f}"
                    f" | storescp tls / pleura tls {took['storescp tls'] / secured:.2f}"
                )
                print(line)
                continue
            for rival, wanted in sample.wanted.items():
                ratio = sum(took[part] for part in rival.split(" + ")) / ours
                verdict = "ok" if ratio >= wanted[associations] else "SHORT"
                line += (
                    f" | {rival} / pleura {ratio:.2f}, wanted {wanted[associations]:.1f}: {verdict}"
                )
            print(line)


# -- what is sent
# ---------------------------------------------------------------------------------------------------


def _uncompressed() -> Sample:
    dataset = Dataset()
    dataset.SOPClassUID = ComputedRadiographyImageStorage
    dataset.Modality = "CR"
    dataset.Rows, dataset.Columns = 3072, 2560
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = (
        16,
        12,
        11,
        0,
    )
    dataset.PixelData = os.urandom(3072 * 2560 * 2)
    dataset["PixelData"].VR = "OW"
    return Sample(
        "15 MB uncompressed",
        ComputedRadiographyImageStorage,
        ExplicitVRLittleEndian,
        _encoded(dataset),
        {1: 6, 4: 3, 8: 2},
        {
            "orthanc": dict.fromkeys(ASSOCIATIONS, 1.5),
            "storescp + write+fsync": dict.fromkeys(ASSOCIATIONS, 0.8),
        },
    )


def _xray(folder: Path) -> Sample:
    """The JPEG X-ray whose size is nearest to 0.13 MB."""
    for path in sorted(folder.glob("*.dcm"), key=lambda path: abs(path.stat().st_size - 130_000)):
        dataset = dcmread(path)
        if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
            data_set = _encoded(dataset)
            name, counts = (
                f"{len(data_set) / 1e6:.2f} MB JPEG X-ray",
                dict.fromkeys(ASSOCIATIONS, 40),
            )
            wanted = {"orthanc": {1: 1.0, 4: 1.5, 8: 1.5}}
            return Sample(
                name, str(dataset.SOPClassUID), JPEGBaseline8Bit, data_set, counts, wanted
            )
    raise SystemExit(f"{folder}: no JPEG X-ray found; give --data")


def _encoded(dataset: Dataset) -> bytes:
    dataset.SOPInstanceUID = UID(PLACEHOLDER)
    dataset.PatientID, dataset.PatientName = "BENCHMARK", "Benchmark"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID("2.25.20"), UID("2.25.21")
    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


# -- the sender
# -----------------------------------------------------------------------------------------------------


class Sender:
    """One association that does nothing but send one sample and wait for each answer."""

    lock = threading.Lock()
    number = 0

    def __init__(
        self, port: int, called: str, sample: Sample, security: ssl.SSLContext | None
    ) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if security is not None:
            self._socket = security.wrap_socket(self._socket, server_hostname="localhost")
        self._socket.sendall(_associate_rq(called, sample))
        kind, body = self._pdu()
        assert kind == 0x02, f"{called}: the association is not accepted (PDU type {kind})"
        self._message = _messages(sample, _maximum_length(body))
        self._places = _all_places(self._message, PLACEHOLDER.encode())
        assert len(self._places) == 2  # in the command and in the data set

    def store(self) -> None:
        with Sender.lock:
            Sender.number += 1
            digits = f"{Sender.number:018d}".encode()
        for place in self._places:
            self._message[place + 6 : place + 24] = digits
        self._socket.sendall(self._message)
        kind, body = self._pdu()
        status = body.partition(b"\0\0\0\x09\x02\0\0\0")[2][:2]  # (0000,0900)
        assert kind == 0x04, f"PDU type {kind} for an answer"
        assert status == b"\0\0", f"status {status.hex()}"

    def release(self) -> None:
        self._socket.sendall(b"\x05\0\0\0\0\x04\0\0\0\0")
        kind, _ = self._pdu()
        assert kind == 0x06, f"PDU type {kind} for a release"
        self._socket.close()

    def _pdu(self) -> tuple[int, bytes]:
        header = self._exactly(6)
        return header[0], self._exactly(int.from_bytes(header[2:], "big"))

    def _exactly(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            more = self._socket.recv(size - len(got))
            assert more, "the connection was closed"
            got += more
        return got


def _associate_rq(called: str, sample: Sample) -> bytes:
    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = bytes([CONTEXT_ID, 0, 0, 0])
    context += item(0x30, sample.sop_class_uid.encode()) + item(
        0x40, sample.transfer_syntax_uid.encode()
    )
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"2.25.22")
    items = item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    body = (
        struct.pack(">HH16s16s32s", 1, 0, called.encode().ljust(16), b"BENCHMARK".ljust(16), b"")
        + items
    )
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _maximum_length(associate_ac: bytes) -> int:
    """The maximum PDU length that the party takes (PS3.8 D.1); 0: no limit."""
    place = associate_ac.rindex(b"\x51\0\0\x04") + 4
    return min(
        int.from_bytes(associate_ac[place : place + 4], "big") or PDU_LIMIT_BYTES, PDU_LIMIT_BYTES
    )


def _messages(sample: Sample, pdu_bytes: int) -> bytearray:
    """A C-STORE-RQ as the PDUs that carry it."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    sop_class = sample.sop_class_uid.encode() + b"\0" * (len(sample.sop_class_uid) % 2)
    command = element(0x0002, sop_class) + element(0x0100, struct.pack("<H", C_STORE_RQ))
    command += element(0x0110, b"\1\0") + element(0x0700, b"\0\0") + element(0x0800, b"\0\0")
    command += element(0x1000, PLACEHOLDER.encode())
    command = element(0x0000, struct.pack("<L", len(command))) + command
    message = bytearray()

    def pdu(flags: int, fragment: bytes) -> None:
        message.extend(
            struct.pack(">BBLLBB", 4, 0, len(fragment) + 6, len(fragment) + 2, CONTEXT_ID, flags)
        )
        message.extend(fragment)

    pdu(0x03, command)
    step = pdu_bytes - 6
    for begin in range(0, len(sample.data_set), step):
        pdu(
            0x02 if begin + step >= len(sample.data_set) else 0x00,
            sample.data_set[begin : begin + step],
        )
    return message


def _all_places(text: bytearray, part: bytes) -> list[int]:
    places, begin = [], text.find(part)
    while begin >= 0:
        places.append(begin)
        begin = text.find(part, begin + 1)
    return places


def _send(party: Party, sample: Sample, associations: int) -> float:
    """Seconds per object."""
    each, port, before = (
        sample.per_association[associations],
        party.port(associations),
        party.kept(),
    )

    def one(_: int) -> None:
        sender = Sender(port, party.called, sample, party.security)
        for _ in range(each):
            sender.store()
        sender.release()

    took = _timed(one, associations) / (each * associations)
    # A party that does not fsync may still be closing files; an object that is not there was not
    # stored.
    wait_until(
        f"{party.name} has all objects", lambda: party.kept() >= before + each * associations
    )
    os.sync()  # what it leaves to be written later is not to slow down the next one
    return took


def _write(folder: Path, sample: Sample, associations: int) -> float:
    """Seconds per object for its bytes alone."""
    folder.mkdir(parents=True)
    each = sample.per_association[associations]

    def one(number: int) -> None:
        for object_number in range(each):
            with (folder / f"{number}-{object_number}").open("xb", buffering=0) as file:
                file.write(sample.data_set)
                os.fsync(file.fileno())

    took = _timed(one, associations) / (each * associations)
    os.sync()
    return took


def _timed(one: Callable[[int], None], at_a_time: int) -> float:
    with ThreadPoolExecutor(at_a_time) as threads:
        started = time.perf_counter()
        list(threads.map(one, range(at_a_time)))
        return time.perf_counter() - started


# -- the parties
# ----------------------------------------------------------------------------------------------------


def _plain(running: ExitStack, folder: Path) -> list[Party]:
    return [start(running, folder / start.__name__) for start in (_pleura, _orthanc, _storescp)]


def _secured(running: ExitStack, folder: Path) -> list[Party]:
    authority = Authority(folder / "ca", key="rsa")
    ours, theirs = authority.issue("receiver"), authority.issue("sender")
    security = ssl.create_default_context(cafile=authority.certificate)
    security.load_cert_chain(theirs.certificate, theirs.key)

    port = unused_port()
    tls = {**ours.settings(), "ca": str(authority.certificate), "port": port}
    secured = _pleura(running, folder / "pleura-tls", {"port": None, "tls": tls})
    options = ["+tls", str(ours.key), str(ours.certificate), "+cf", str(authority.certificate)]
    rival = _storescp(running, folder / "storescp-tls", options)
    return [
        _pleura(running, folder / "pleura"),
        replace(secured, name="pleura tls", port=lambda _: port, security=security),
        replace(rival, name="storescp tls", security=security),
    ]


def _pleura(
    running: ExitStack, folder: Path, more: Mapping[str, object] = MappingProxyType({})
) -> Party:
    folder.mkdir()
    port, spool = unused_port(), folder / "spool"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "spool": str(spool),
        "ledger": f"sqlite:///{folder / 'ledger.db'}",
    } | dict(more)
    (folder / "pleura.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "daemon.cli", "receive", "-c", str(folder / "pleura.yaml")]
    process = _spawn(running, command, folder, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"READY", (folder / "log.txt").read_text()

    def files() -> list[Path]:
        return [path for path in spool.glob("??/*") if path.is_file()]

    return Party("pleura", "PLEURA", lambda _: port, lambda: len(files()), lambda: _remove(files()))


def _orthanc(running: ExitStack, folder: Path) -> Party:
    server = running.enter_context(
        Orthanc(_program("Orthanc"), folder, (unused_port(), unused_port()))
    )

    def forget() -> None:
        for patient in server.get("/patients"):
            request = urllib.request.Request(
                f"http://127.0.0.1:{server.http_port}/patients/{patient}", method="DELETE"
            )
            urllib.request.urlopen(request, timeout=TIMEOUT_S).close()

    kept = lambda: int(server.get("/statistics")["CountInstances"])  # noqa: E731
    return Party("orthanc", server.ae_title, lambda _: server.dicom_port, kept, forget)


def _storescp(running: ExitStack, folder: Path, options: Sequence[str] = ()) -> Party:
    kept = folder / "kept"
    kept.mkdir(parents=True)
    quickest = [
        "--bit-preserving",
        "--max-pdu",
        "131072",
        "--disable-host-lookup",
        "+xa",
        "-od",
        str(kept),
        *options,
    ]
    alone, forking = unused_port(), unused_port()
    for port, more in ((alone, ["--single-process"]), (forking, ["--fork"])):
        _spawn(running, [_program("storescp"), *quickest, *more, str(port)], folder)
        wait_until("storescp listens", lambda port=port: _listens(port))

    def files() -> list[Path]:
        return list(kept.iterdir())

    return Party(
        "storescp",
        "STORESCP",
        lambda associations: alone if associations == 1 else forking,
        lambda: len(files()),
        lambda: _remove(files()),
    )


def _spawn(
    running: ExitStack, command: list[str], folder: Path, **how: int
) -> subprocess.Popen[bytes]:
    log = running.enter_context((folder / "log.txt").open("ab"))
    process = subprocess.Popen(
        command,
        stderr=log,
        env=os.environ | {"TCP_NODELAY": "1"},
        cwd=REPOSITORY,
        **({"stdout": log} | how),
    )

    def stop() -> None:
        process.terminate()
        process.wait(TIMEOUT_S)
        if process.stdout is not None:
            process.stdout.close()

    running.callback(stop)
    return process


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _remove(files: Iterable[Path]) -> None:
    for path in files:
        path.unlink()


def _program(name: str) -> str:
    path = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin")
    if path is None:
        raise SystemExit(f"{name} is not installed (apt-get install dcmtk orthanc)")
    return path


def _file_system(folder: Path) -> str:
    """The type of file system that `folder` lies on."""
    best, kind = "", ""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mounted, found, *_ = line.split()
        if folder.resolve().is_relative_to(mounted) and len(mounted) >= len(best):
            best, kind = mounted, found
    return kind


if __name__ == "__main__":
    main()
