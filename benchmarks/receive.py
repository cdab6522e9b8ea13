"""The time to accept an object, with full durability, beside Orthanc and DCMTK's storescp.

    python -m benchmarks.receive [--rounds N] [--data DIR] [--folder DIR]
                                 [--tls | --beside CHECKOUT]

Each round sends the same objects to each party, one after another, over 1, 4 and 8 associations at
a time: 15 MB uncompressed, and one of the real JPEG X-rays in DATA. The parties:
- pleura: the receive role as a separate process. Before it answers, it names the file, fsyncs file
  and folder, and commits the row.
- orthanc: its default configuration, which fsyncs the file before it answers.
- storescp: no fsync; its fastest options (it writes the data set as it arrives, and forks a process
  for each further association).
- write+fsync: only writes the same bytes to the same number of files at a time, with fsync.

With `--tls` the parties are pleura plain, pleura over TLS and storescp over TLS; both verify the
sender's certificate, and a handshake for each association is part of its time.

With `--beside` the parties are pleura and the receive role of another checkout of Pleura, with the
same Python: machines differ more than versions do.

All parties get the same sender: a socket with prepared PDUs, as large as the party accepts, at most
128 KiB, with TCP_NODELAY. A time is the elapsed time from the first connect to the last release,
divided by the number of objects. Before each turn the disk is synced, so that bytes which storescp
and Orthanc left in memory cost neither the next party's time nor theirs. Prints medians over the
rounds in milliseconds per object, and ratios of medians. All written files are removed at the end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

from benchmarks.measurement import (
    REPOSITORY,
    add_data_option,
    add_folder_option,
    command_line,
    in_turn,
    machine,
    median_ms,
    program,
    require_real_disk,
    xray_files,
)
from tools.peers.certificates import Authority
from tools.peers.harness import Orthanc
from tools.peers.ports import unused_port
from tools.peers.waiting import wait_until

ASSOCIATIONS = (1, 4, 8)
_WRITE = "write+fsync"
_BESIDE = "beside"
TIMEOUT_S = 60.0
PDU_LIMIT_BYTES = 128 * 1024
# The SOP Instance UID in the prepared PDUs; each object gets its own digits.
PLACEHOLDER = "2.25.1" + "0" * 18
CONTEXT_ID = 1
C_STORE_RQ = 0x0001


@dataclass(frozen=True)
class Sample:
    """An object that is sent repeatedly with new SOP Instance UIDs."""

    name: str
    sop_class_uid: str
    transfer_syntax_uid: str
    data_set: bytes
    # Associations at a time -> objects on each.
    per_association: dict[int, int]
    # Rival -> associations at a time -> the least wanted ratio of its time to ours.
    wanted: dict[str, dict[int, float]]


@dataclass
class Party:
    """A receiver. `kept` counts its stored objects; `files` are their files."""

    name: str
    called: str
    # Number of associations -> the port to use.
    port: Callable[[int], int]
    kept: Callable[[], int]
    files: Callable[[], Sequence[Path]]
    # The sender's TLS context; None: without TLS.
    security: ssl.SSLContext | None = None


# The subject of a figure: kind of object, associations at a time, party.
Key = tuple[str, int, str]


def main() -> None:
    """Print each party's time per object, and the ratios of the rivals' to ours."""
    options = _options()
    require_real_disk(options.folder)
    samples = [_uncompressed(), _xray(options.data)]

    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(dir=options.folder)))
        if options.tls:
            parties = _secured(running, folder)
        elif options.beside:
            parties = _versions(running, folder, options.beside)
        else:
            parties = _plain(running, folder)
        times = _measured(samples, parties, folder / "plain", options.rounds)

    ground = machine(folder=options.folder)
    print(f"{options.rounds} rounds, {ground}; milliseconds per object")
    names = [*(party.name for party in parties), _WRITE]
    _print(samples, names, {key: median_ms(seconds) for key, seconds in times.items()})


def _options() -> argparse.Namespace:
    parser = command_line(__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    add_data_option(parser)
    add_folder_option(parser)
    parties = parser.add_mutually_exclusive_group()
    parties.add_argument(
        "--tls", action="store_true", help="compare TLS with plain, and with storescp's TLS"
    )
    parties.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="compare with another checkout of Pleura"
    )
    return parser.parse_args()


def _measured(
    samples: Sequence[Sample], parties: Sequence[Party], plain: Path, rounds: int
) -> Mapping[Key, Sequence[float]]:
    """Seconds per object of every round but the first, which warms up."""
    times: dict[Key, list[float]] = {}

    for number in range(rounds + 1):
        for sample, associations in itertools.product(samples, ASSOCIATIONS):
            senders: dict[str, Callable[[], float]] = {
                party.name: partial(_send, party, sample, associations) for party in parties
            }
            folder = plain / f"{number}, {sample.name}, {associations}"
            senders[_WRITE] = partial(_write, folder, sample, associations)

            for name in in_turn([*senders], number):
                # Bytes that a party left in memory must not be written during the next turn.
                os.sync()
                seconds = senders[name]()
                if number:
                    times.setdefault((sample.name, associations, name), []).append(seconds)

        for party in parties:
            _empty(party.files())
        _empty(plain.glob("*/*"))
        os.sync()
    return times


def _print(samples: Iterable[Sample], names: Sequence[str], medians: Mapping[Key, float]) -> None:
    print(f"{'object':18} {'assoc.':>6} " + " ".join(f"{name:>11}" for name in names))

    for sample, associations in itertools.product(samples, ASSOCIATIONS):
        took = {name: medians[sample.name, associations, name] for name in names}
        figures = " ".join(f"{took[name]:11.2f}" for name in names)
        if "pleura tls" in took:
            verdicts = _against_tls(took)
        elif _BESIDE in took:
            verdicts = _against_version(took)
        else:
            verdicts = _against_rivals(sample, associations, took)
        print(f"{sample.name:18} {associations:6} {figures}" + "".join(verdicts))


def _against_tls(took: Mapping[str, float]) -> Iterator[str]:
    """The cost of TLS for us, and the ratio of storescp's time over TLS to ours."""
    yield f" | tls / plain {took['pleura tls'] / took['pleura']:.2f}"
    yield f" | storescp tls / pleura tls {took['storescp tls'] / took['pleura tls']:.2f}"


def _against_version(took: Mapping[str, float]) -> Iterator[str]:
    """The ratio of the other checkout's time to ours."""
    yield f" | {_BESIDE} / pleura {took[_BESIDE] / took['pleura']:.2f}"


def _against_rivals(sample: Sample, associations: int, took: Mapping[str, float]) -> Iterator[str]:
    """The ratio of each rival's time to ours, and whether it reaches the wanted ratio."""
    for rival, ratios in sample.wanted.items():
        wanted = ratios[associations]
        ratio = sum(took[part] for part in rival.split(" + ")) / took["pleura"]
        verdict = "ok" if ratio >= wanted else "SHORT"
        yield f" | {rival} / pleura {ratio:.2f}, wanted {wanted:.1f}: {verdict}"


# ---- the objects


def _uncompressed() -> Sample:
    """Noise in the matrix of a flat detector."""
    rows, columns = 3072, 2560
    values = {
        "SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR", "Rows": rows,
        "Columns": columns, "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0,
    }  # fmt: skip
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = os.urandom(rows * columns * 2)
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


def _xray(data: Path) -> Sample:
    """The JPEG X-ray whose size is nearest to 0.13 MB."""
    for path in sorted(xray_files(data), key=lambda path: abs(path.stat().st_size - 130_000)):
        dataset = dcmread(path)
        if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
            data_set = _encoded(dataset)
            return Sample(
                f"{len(data_set) / 1e6:.2f} MB JPEG X-ray",
                str(dataset.SOPClassUID),
                JPEGBaseline8Bit,
                data_set,
                dict.fromkeys(ASSOCIATIONS, 40),
                {"orthanc": {1: 1.0, 4: 1.5, 8: 1.5}},
            )

    raise SystemExit(f"{data}: no JPEG X-ray found; give --data")


def _encoded(dataset: Dataset) -> bytes:
    """The data set of a made-up patient, in Explicit VR Little Endian."""
    dataset.SOPInstanceUID = UID(PLACEHOLDER)
    dataset.PatientID = "BENCHMARK"
    dataset.PatientName = "Benchmark"
    dataset.StudyInstanceUID = UID("2.25.20")
    dataset.SeriesInstanceUID = UID("2.25.21")

    buffer = BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


# ---- the sender


class Sender:
    """An association that only sends one sample repeatedly, and waits for each answer."""

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
        # The UID occurs in the command and in the data set.
        assert len(self._places) == 2

    def store(self) -> None:
        """Send the sample under a new SOP Instance UID, and wait for success."""
        with Sender.lock:
            Sender.number += 1
            digits = f"{Sender.number:018d}".encode()
        for place in self._places:
            self._message[place + 6 : place + 24] = digits

        self._socket.sendall(self._message)
        kind, body = self._pdu()
        # Status (0000,0900).
        status = body.partition(b"\0\0\0\x09\x02\0\0\0")[2][:2]
        assert kind == 0x04, f"PDU type {kind} for an answer"
        assert status == b"\0\0", f"status {status.hex()}"

    def release(self) -> None:
        """Release the association and close the connection."""
        self._socket.sendall(b"\x05\0\0\0\0\x04\0\0\0\0")
        kind, _ = self._pdu()
        assert kind == 0x06, f"PDU type {kind} for a release"
        self._socket.close()

    def _pdu(self) -> tuple[int, bytes]:
        header = self._exactly(6)
        return header[0], self._exactly(int.from_bytes(header[2:], "big"))

    def _exactly(self, size_bytes: int) -> bytes:
        received = b""
        while len(received) < size_bytes:
            part = self._socket.recv(size_bytes - len(received))
            assert part, "the connection was closed"
            received += part
        return received


def _associate_rq(called: str, sample: Sample) -> bytes:
    def item(kind: int, body: bytes) -> bytes:
        return struct.pack(">BBH", kind, 0, len(body)) + body

    context = bytes([CONTEXT_ID, 0, 0, 0])
    context += item(0x30, sample.sop_class_uid.encode())
    context += item(0x40, sample.transfer_syntax_uid.encode())
    user = item(0x51, struct.pack(">L", 16384)) + item(0x52, b"2.25.22")

    titles = (called.encode().ljust(16), b"BENCHMARK".ljust(16))
    body = struct.pack(">HH16s16s32s", 1, 0, *titles, b"")
    body += item(0x10, b"1.2.840.10008.3.1.1.1") + item(0x20, context) + item(0x50, user)
    return struct.pack(">BBL", 1, 0, len(body)) + body


def _maximum_length(associate_ac: bytes) -> int:
    """The largest PDU to send: the party's maximum length (PS3.8 D.1; 0 is no limit), or ours."""
    place = associate_ac.rindex(b"\x51\0\0\x04") + 4
    length = int.from_bytes(associate_ac[place : place + 4], "big")
    return min(length or PDU_LIMIT_BYTES, PDU_LIMIT_BYTES)


def _messages(sample: Sample, pdu_bytes: int) -> bytearray:
    """A C-STORE-RQ as the PDUs that carry it."""

    def element(number: int, value: bytes) -> bytes:
        return struct.pack("<HHL", 0, number, len(value)) + value

    sop_class = sample.sop_class_uid.encode() + b"\0" * (len(sample.sop_class_uid) % 2)
    command = element(0x0002, sop_class) + element(0x0100, struct.pack("<H", C_STORE_RQ))
    command += element(0x0110, b"\1\0") + element(0x0700, b"\0\0") + element(0x0800, b"\0\0")
    command += element(0x1000, PLACEHOLDER.encode())
    command = element(0x0000, struct.pack("<L", len(command))) + command

    message = bytearray(_p_data(0x03, command))
    step = pdu_bytes - 6
    for begin in range(0, len(sample.data_set), step):
        is_last = begin + step >= len(sample.data_set)
        fragment = sample.data_set[begin : begin + step]
        message += _p_data(0x02 if is_last else 0x00, fragment)
    return message


def _p_data(flags: int, fragment: bytes) -> bytes:
    """A P-DATA-TF PDU of one PDV (PS3.8 9.3.5); `flags`: its message control header."""
    lengths = (len(fragment) + 6, len(fragment) + 2)
    return struct.pack(">BBLLBB", 4, 0, *lengths, CONTEXT_ID, flags) + fragment


def _all_places(text: bytearray, part: bytes) -> list[int]:
    """The offset of each occurrence of `part`."""
    places = []
    begin = text.find(part)
    while begin >= 0:
        places.append(begin)
        begin = text.find(part, begin + 1)
    return places


def _send(party: Party, sample: Sample, associations: int) -> float:
    """Send the sample over associations in parallel; returns the seconds per object."""
    per_association = sample.per_association[associations]
    objects = per_association * associations
    port = party.port(associations)
    before = party.kept()

    def send(_: int) -> None:
        sender = Sender(port, party.called, sample, party.security)
        for _ in range(per_association):
            sender.store()
        sender.release()

    took_s = _timed(send, associations) / objects

    # A party that does not fsync may still be closing files. A missing object was not stored.
    wait_until(f"{party.name} has all objects", lambda: party.kept() >= before + objects)
    # Bytes that it left in memory must not slow down the next party.
    os.sync()
    return took_s


def _write(folder: Path, sample: Sample, associations: int) -> float:
    """Seconds per object for only writing and fsyncing its bytes."""
    folder.mkdir(parents=True)
    per_association = sample.per_association[associations]

    def write(number: int) -> None:
        for object_number in range(per_association):
            with (folder / f"{number}-{object_number}").open("xb", buffering=0) as file:
                file.write(sample.data_set)
                os.fsync(file.fileno())

    took_s = _timed(write, associations) / (per_association * associations)
    os.sync()
    return took_s


def _timed(work: Callable[[int], None], at_a_time: int) -> float:
    """Seconds of `at_a_time` parallel calls of `work`."""
    with ThreadPoolExecutor(at_a_time) as threads:
        started = time.perf_counter()
        list(threads.map(work, range(at_a_time)))
        return time.perf_counter() - started


# ---- the parties


def _plain(running: ExitStack, folder: Path) -> list[Party]:
    return [start(running, folder / start.__name__) for start in (_pleura, _orthanc, _storescp)]


def _versions(running: ExitStack, folder: Path, checkout: Path) -> list[Party]:
    beside = _pleura(running, folder / "beside", checkout=checkout.resolve())
    return [_pleura(running, folder / "pleura"), replace(beside, name=_BESIDE)]


def _secured(running: ExitStack, folder: Path) -> list[Party]:
    authority = Authority(folder / "ca", key="rsa")
    receiver = authority.issue("receiver")
    sender = authority.issue("sender")
    security = ssl.create_default_context(cafile=authority.certificate)
    security.load_cert_chain(sender.certificate, sender.key)

    port = unused_port()
    tls = {**receiver.settings(), "ca": str(authority.certificate), "port": port}
    secured = _pleura(running, folder / "pleura-tls", {"port": None, "tls": tls})

    pair = [str(receiver.key), str(receiver.certificate)]
    options = ["+tls", *pair, "+cf", str(authority.certificate)]
    rival = _storescp(running, folder / "storescp-tls", options)
    return [
        _pleura(running, folder / "pleura"),
        replace(secured, name="pleura tls", port=lambda _: port, security=security),
        replace(rival, name="storescp tls", security=security),
    ]


def _pleura(
    running: ExitStack,
    folder: Path,
    more: Mapping[str, object] = MappingProxyType({}),
    checkout: Path = REPOSITORY,
) -> Party:
    folder.mkdir()
    port = unused_port()
    spool = folder / "spool"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "spool": str(spool),
        "ledger": f"sqlite:///{folder / 'ledger.db'}",
    } | dict(more)
    path = folder / "pleura.yaml"
    path.write_text(yaml.safe_dump(settings))

    command = [sys.executable, "-m", "daemon.cli", "receive", "-c", str(path)]
    process = _spawn(running, command, folder, is_heard=True, checkout=checkout)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"READY", (folder / "log.txt").read_text()

    def files() -> list[Path]:
        return [path for path in spool.glob("??/*") if path.is_file()]

    return Party("pleura", "PLEURA", lambda _: port, lambda: len(files()), files)


def _orthanc(running: ExitStack, folder: Path) -> Party:
    orthanc = Orthanc(program("Orthanc"), folder, (unused_port(), unused_port()))
    server = running.enter_context(orthanc)

    def kept() -> int:
        return int(server.get("/statistics")["CountInstances"])

    def files() -> list[Path]:
        return list(folder.glob("storage/??/??/*"))

    return Party("orthanc", server.ae_title, lambda _: server.dicom_port, kept, files)


def _storescp(running: ExitStack, folder: Path, options: Sequence[str] = ()) -> Party:
    kept = folder / "kept"
    kept.mkdir(parents=True)
    quickest = ["--bit-preserving", "--max-pdu", "131072", "--disable-host-lookup", "+xa"]
    command = [program("storescp"), *quickest, "-od", str(kept), *options]

    alone, forking = unused_port(), unused_port()
    for port, process in ((alone, "--single-process"), (forking, "--fork")):
        _spawn(running, [*command, process, str(port)], folder)
        wait_until("storescp listens", partial(_listens, port))

    def files() -> list[Path]:
        return list(kept.iterdir())

    return Party(
        "storescp",
        "STORESCP",
        lambda associations: alone if associations == 1 else forking,
        lambda: len(files()),
        files,
    )


def _spawn(
    running: ExitStack,
    command: list[str],
    folder: Path,
    is_heard: bool = False,
    checkout: Path = REPOSITORY,
) -> subprocess.Popen[bytes]:
    """Start a program that ends with `running`. With `is_heard`, its output can be read.

    Pleura's own modules are those of `checkout`.
    """
    log = running.enter_context((folder / "log.txt").open("ab"))
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if is_heard else log,
        stderr=log,
        env=os.environ | {"TCP_NODELAY": "1"},
        # `python -m` imports from the working directory.
        cwd=checkout,
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


def _empty(files: Iterable[Path]) -> None:
    """Give back the room of files.

    Removing them would free their inodes. ext4 reuses none for minutes after that, and its search
    for others slows all parties.
    """
    for path in files:
        os.truncate(path, 0)


if __name__ == "__main__":
    main()
