"""Read the weights in a PyTorch checkpoint without PyTorch and without running anything in it.

A file that ``torch.save`` writes is a zip archive: a pickle that describes the tensors, and their
bytes beside it. A pickle is a program, and unpickling a hostile one runs it. So this module follows the
few instructions that describe a state dict with a stack of its own, which can hold numbers, text,
containers and tensors and can neither import nor call anything; every other instruction is refused.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import open_input
from ..rule import bare_names

_MAX_FILE = 256 << 20  # bytes; an NCA takes less than one megabyte, and the file is held in memory
_MAX_ENTRIES = 16_384
_MAX_PICKLE = 4 << 20  # bytes
_MAX_INSTRUCTIONS = 200_000  # a tensor takes about thirty
_MAX_STACK = 10_000  # torch.save puts at most two thousand values on it, in batches of one thousand pairs
_MAX_DIMENSIONS = 8
_MAX_NAME = 200

# What torch.save wrote first before version 1.6: a pickle of its own magic number.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_ZIP_MAGIC = b"PK\x03\x04"
_ZIP_ENTRY_MAGIC = b"PK\x01\x02"
_ZIP_ENTRY_HEADER = 30  # bytes in front of an entry's name
_ZIP_ENCRYPTED = 0x0001 | 0x0040 | 0x2000

# As stored: little-endian. A bool is read as a byte, because only 0 and 1 are valid in a NumPy bool.
_STORAGE_TYPES = {
    "torch FloatStorage": ("<f4", np.float32),
    "torch DoubleStorage": ("<f8", np.float64),
    "torch HalfStorage": ("<f2", np.float16),
    "torch LongStorage": ("<i8", np.int64),
    "torch IntStorage": ("<i4", np.int32),
    "torch ShortStorage": ("<i2", np.int16),
    "torch CharStorage": ("i1", np.int8),
    "torch ByteStorage": ("u1", np.uint8),
    "torch BoolStorage": ("u1", np.bool_),
}
# The instructions that describe a state dict, and how their argument is stored where its size is fixed.
# Pickle has as many others, and through them all of Python.
_ALLOWED = {
    "PROTO": "<B",
    "STOP": "",
    "MARK": "",
    "NONE": "",
    "NEWTRUE": "",
    "NEWFALSE": "",
    "BININT": "<i",
    "BININT1": "<B",
    "BININT2": "<H",
    "LONG1": "",
    "BINFLOAT": ">d",
    "BINUNICODE": "",
    "EMPTY_TUPLE": "",
    "TUPLE": "",
    "TUPLE1": "",
    "TUPLE2": "",
    "TUPLE3": "",
    "EMPTY_LIST": "",
    "APPEND": "",
    "APPENDS": "",
    "EMPTY_DICT": "",
    "SETITEM": "",
    "SETITEMS": "",
    "BINPUT": "<B",
    "LONG_BINPUT": "<I",
    "BINGET": "<B",
    "LONG_BINGET": "<I",
    "GLOBAL": "",
    "BINPERSID": "",
    "REDUCE": "",
    "BUILD": "",
}
_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *_STORAGE_TYPES,
}

_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema", "ema_state_dict", "model_ema", "state_dict_ema")
_AVERAGED = "n_averaged"  # the number of models in an AveragedModel, which stands beside its ``module.``


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Read the tensors of a state dict that ``torch.save`` wrote.

    Nothing in the file is imported, called or unpickled, and sizes are checked before memory is taken,
    so the file need not be trusted.

    Parameters
    ----------
    path : str or path-like
        A zip archive of ``torch.save`` (PyTorch 1.6 or newer, at most 256 MiB) that holds a dict of
        tensors, or one under ``"state_dict"``, ``"model_state_dict"``, ``"model"`` or ``"ema"``. The prefixes
        ``module.`` and ``_orig_mod.`` of all names are removed, also several of them; a prefix of some is refused.
        Values that are not tensors are left out.

    Returns
    -------
    dict of str to array
        In the file's order. Arrays are C-contiguous, writable and of the machine's own byte order; their
        dtype is the tensor's: float16, float32, float64, bool, uint8, or a signed integer.

    Raises
    ------
    ValueError
        The file is something else, is damaged, or holds anything but plain weights; one sentence says
        what, and what would be right.
    OSError
        The file does not exist or cannot be read.
    """
    name = os.fspath(path)
    try:
        return _arrays(_Archive(_file_bytes(name)))
    except _Refusal as refusal:
        raise ValueError(f"{name}: {refusal}") from refusal.__cause__
    except MemoryError:
        raise ValueError(f"{name}: there is not enough memory to read it") from None


class _Refusal(Exception):
    """What is wrong with the file, as a sentence without the file's name."""


def _file_bytes(path: str) -> bytes:
    with open_input(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE:
            raise _Refusal(f"the file has {size} bytes; checkpoints may have up to {_MAX_FILE}")
        return file.read(size)


class _Archive:
    """The zip archive around the pickle; every entry's place and size is checked before one is read."""

    def __init__(self, data: bytes) -> None:
        _check_is_zip(data)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
            infos = self._zip.infolist()
        except Exception as error:  # zipfile raises a dozen kinds over damaged bytes; no file is behind these
            raise _Refusal("the zip archive is damaged or cut off; copy or download it again") from error
        _check_entries(infos, len(data))
        self._entries = {info.filename: info for info in infos}
        self._root = self._find_root()
        self._check_byte_order()

    def _find_root(self) -> str:
        pickles = [name for name in self._entries if name == "data.pkl" or name.endswith("/data.pkl")]
        if not pickles:
            raise _Refusal("the zip archive holds no data.pkl, so torch.save did not write it")
        if len(pickles) > 1:
            raise _Refusal(f"the zip archive holds {len(pickles)} files data.pkl; torch.save writes one")
        return pickles[0].removesuffix("data.pkl")

    def _check_byte_order(self) -> None:
        # Archives from before torch 2.1 do not say; those in use come from little-endian machines.
        if "byteorder" in self and (self.size("byteorder") > 16 or self.read("byteorder") != b"little"):
            raise _Refusal("it was saved on a big-endian machine; save it again on a little-endian one")

    def __contains__(self, name: str) -> bool:
        return self._root + name in self._entries

    def size(self, name: str) -> int:
        return self._entries[self._root + name].file_size

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._entries[self._root + name])
        except Exception as error:  # as in __init__
            raise _Refusal(
                f"{_shown(name)} in it is damaged (wrong checksum or length); copy or download it again"
            ) from error


def _check_is_zip(data: bytes) -> None:
    if not data:
        raise _Refusal("the file is empty")
    if data.startswith(_LEGACY_MAGIC):
        raise _Refusal(
            "this is PyTorch's format from before version 1.6; load it with a current torch and save it "
            "again with torch.save"
        )
    if not data.startswith(_ZIP_MAGIC):
        raise _Refusal(
            "this is not a PyTorch checkpoint, which is a zip archive; save the weights again with "
            "torch.save(model.state_dict(), ...) of torch 1.6 or newer"
        )
    if data.count(_ZIP_ENTRY_MAGIC) > _MAX_ENTRIES:
        raise _Refusal(f"the zip archive holds more than {_MAX_ENTRIES} entries")


def _check_entries(infos: list[zipfile.ZipInfo], file_size: int) -> None:
    """Refuse what ``torch.save`` never writes; above all, entries that hold more bytes than the file."""
    seen: set[str] = set()
    for info in infos:
        name = _shown(info.filename)
        if info.filename in seen:
            raise _Refusal(f"the zip archive holds {name} twice")
        seen.add(info.filename)
        if info.flag_bits & _ZIP_ENCRYPTED:
            raise _Refusal(f"{name} in it is encrypted; torch.save never encrypts")
        if info.compress_type != zipfile.ZIP_STORED:
            raise _Refusal(f"{name} in it is compressed; torch.save stores uncompressed, so save it again")
        if info.compress_size != info.file_size:
            raise _Refusal(f"{name} in it has two different sizes; the zip archive is damaged")
    end = 0
    for info in sorted(infos, key=lambda entry: entry.header_offset):
        if info.header_offset < end:
            raise _Refusal(f"{_shown(info.filename)} overlaps another entry of the zip archive")
        end = info.header_offset + _ZIP_ENTRY_HEADER + info.file_size
    if end > file_size:
        raise _Refusal("the zip archive's entries are larger than the file; it is damaged or cut off")


@dataclass(frozen=True)
class _Global:
    """A name in the pickle, as "module name"; never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """The bytes behind tensors: an entry ``data/<key>`` of ``count`` elements."""

    key: str
    type: str
    count: int

    @property
    def size(self) -> int:
        return self.count * np.dtype(_STORAGE_TYPES[self.type][0]).itemsize


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and stride count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * np.dtype(_STORAGE_TYPES[self.storage.type][0]).itemsize

    def check(self, name: str) -> None:
        """Refuse a view that reaches outside its storage or is larger than it."""
        if len(self.shape) > _MAX_DIMENSIONS or len(self.stride) != len(self.shape):
            raise _Refusal(
                f"tensor {_shown(name)} has {len(self.shape)} sizes and {len(self.stride)} strides; there must be "
                f"as many of both, at most {_MAX_DIMENSIONS}"
            )
        count, held = math.prod(self.shape), self.storage.count
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        negative = min((self.offset, *self.shape, *self.stride)) < 0
        # Sizes beside a 0 take no memory, but must still be such that an array can have them.
        unbounded = count == 0 and math.prod(n or 1 for n in self.shape) > _MAX_FILE
        if negative or unbounded or count > held or (count > 0 and last >= held):
            raise _Refusal(
                f"tensor {_shown(name)} of shape {self.shape}, strides {self.stride} and offset {self.offset} does "
                f"not fit its storage of {held} elements; save a contiguous copy of it"
            )

    def array(self, data: bytes) -> NDArray[Any]:
        stored, native = _STORAGE_TYPES[self.storage.type]
        if 0 in self.shape:
            return np.zeros(self.shape, native)
        item = np.dtype(stored).itemsize
        # torch leaves any number as the stride of an axis of size 1
        strides = [0 if n == 1 else s * item for n, s in zip(self.shape, self.stride, strict=True)]
        view: NDArray[Any] = np.ndarray(self.shape, stored, buffer=data, offset=self.offset * item, strides=strides)
        return np.array(view, dtype=native, order="C")


def _arrays(archive: _Archive) -> dict[str, NDArray[Any]]:
    if archive.size("data.pkl") > _MAX_PICKLE:
        raise _Refusal(f"its data.pkl has {archive.size('data.pkl')} bytes; up to {_MAX_PICKLE} are read")
    tensors = _named_tensors(_Machine().run(archive.read("data.pkl")))
    for name, tensor in tensors.items():
        _check_storage(tensor.storage, archive)
        tensor.check(name)
    storages = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    # Each tensor fits its storage; together they might still be many copies of a few bytes.
    held = sum(storage.size for storage in storages.values())
    needed = sum(tensor.size for tensor in tensors.values())
    if needed > held:
        raise _Refusal(
            f"its tensors take {needed} bytes and the file holds {held} for them; save tensors that share "
            "memory as copies (tensor.clone())"
        )
    data = {key: archive.read(f"data/{key}") for key in storages}
    return {name: tensor.array(data[tensor.storage.key]) for name, tensor in tensors.items()}


def _check_storage(storage: _Storage, archive: _Archive) -> None:
    entry = f"data/{storage.key}"
    if entry not in archive:
        raise _Refusal(f"the zip archive lacks {_shown(entry)}, which its data.pkl refers to")
    if archive.size(entry) != storage.size:
        raise _Refusal(f"{_shown(entry)} in it has {archive.size(entry)} bytes, but {storage.size} by its data.pkl")


def _named_tensors(top: object) -> dict[str, _Tensor]:
    """Find the state dict in what the pickle describes, and name its tensors as the model itself does."""
    if not isinstance(top, dict):
        raise _Refusal("it holds no dict of tensors; save model.state_dict()")
    wrappers = [key for key in _WRAPPERS if isinstance(top.get(key), dict)]
    if len(wrappers) > 1:
        raise _Refusal(f"it holds a state dict under each of {', '.join(wrappers)}; save only one")
    state_dict = top[wrappers[0]] if wrappers else top
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, _Tensor)}
    if not tensors:
        raise _Refusal(
            f"it holds no tensors, neither at the top nor under {', '.join(_WRAPPERS)}; save model.state_dict()"
        )
    # Names go into messages, so they must be short and free of a terminal's control characters.
    if not all(isinstance(name, str) and name.isprintable() and len(name) <= _MAX_NAME for name in tensors):
        raise _Refusal(f"a tensor in it is not named by up to {_MAX_NAME} printable characters")
    if any(name.startswith("module.") for name in tensors):
        tensors.pop(_AVERAGED, None)
    try:
        return {bare: tensors[name] for name, bare in bare_names(list(tensors)).items()}
    except ValueError as error:
        raise _Refusal(str(error)) from None


class _Machine:
    """Follows a pickle's instructions as far as they describe numbers, text, containers and tensors."""

    def __init__(self) -> None:
        self._stack: list[object] = []
        self._marks: list[int] = []  # where the values after each open MARK begin
        self._memo: dict[int, object] = {}

    def run(self, pickled: bytes) -> object:
        for name, argument in _instructions(pickled):
            if name == "STOP":
                break
            self._step(name, argument)
            if len(self._stack) + len(self._marks) > _MAX_STACK:
                raise _Refusal(f"its data.pkl piles up more than {_MAX_STACK} values; torch.save does not")
        top = self._pop()
        if self._stack or self._marks:
            raise _Refusal("its data.pkl leaves values over; it is damaged")
        return top

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "BINUNICODE" | "BINFLOAT" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                self._stack.append(_plain(argument))
            case "NONE":
                self._stack.append(None)
            case "NEWTRUE":
                self._stack.append(True)
            case "NEWFALSE":
                self._stack.append(False)
            case "EMPTY_TUPLE":
                self._stack.append(())
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST":
                self._stack.append([])
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                self._stack.append(tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self._pop() for _ in range(int(name[-1]))]
                self._stack.append(tuple(reversed(values)))
            case "APPEND":
                self._append([self._pop()])
            case "APPENDS":
                self._append(self._pop_to_mark())
            case "SETITEM":
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._remember(argument)
            case "BINGET" | "LONG_BINGET":
                self._stack.append(self._recall(argument))
            case "GLOBAL":
                self._stack.append(_allowed_global(argument))
            case "BINPERSID":
                self._stack.append(_storage(self._pop()))
            case "REDUCE":
                arguments, function = self._pop(), self._pop()
                self._stack.append(_rebuilt(function, arguments))
            case "BUILD":
                self._build()

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise _Refusal("its data.pkl takes a value that is not there; it is damaged")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[object]:
        if not self._marks:
            raise _Refusal("its data.pkl closes a group that it never opened; it is damaged")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _append(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            raise _Refusal("its data.pkl appends to something that is no list; it is damaged")
        target.extend(values)
        self._stack.append(target)

    def _set_items(self, items: list[object]) -> None:
        target = self._pop()
        keys, values = items[::2], items[1::2]
        if not isinstance(target, dict) or len(keys) != len(values):
            raise _Refusal("its data.pkl fills something that is no dict; it is damaged")
        # Tuples as keys are of no use here, and hashing nested shared ones can take for ever.
        if not all(type(key) in (str, int) for key in keys):
            raise _Refusal("its data.pkl holds a dict whose keys are neither text nor whole numbers")
        target.update(zip(keys, values, strict=True))
        self._stack.append(target)

    def _remember(self, index: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _recall(self, index: int) -> object:
        if index not in self._memo:
            raise _Refusal(f"its data.pkl recalls value {index}, which it never stored; it is damaged")
        return self._memo[index]

    def _build(self) -> None:
        """Drop what an OrderedDict carries besides its items: ``_metadata``, the layers' version numbers."""
        self._pop()
        target = self._pop()
        if not isinstance(target, dict):
            raise _Refusal("its data.pkl sets attributes of something that is no dict; save plain weights")
        self._stack.append(target)


def _instructions(pickled: bytes) -> Iterator[tuple[str, Any]]:
    """Cut a pickle into the name and the argument of each instruction, as far as they are allowed.

    ``pickletools.genops`` would read the arguments of all others too, and warn and spend time over them.
    """
    stream = io.BytesIO(pickled)
    for _ in range(_MAX_INSTRUCTIONS):
        code = _take(stream, 1)
        name = _NAMES.get(code, f"{code[0]:#x}")
        if name not in _ALLOWED:
            raise _Refusal(
                f"its data.pkl uses the instruction {name}, which torch.save does not write for a state "
                "dict; save model.state_dict() with torch.save's default protocol"
            )
        yield name, _argument(name, stream)
    raise _Refusal(f"its data.pkl has more than {_MAX_INSTRUCTIONS} instructions")


def _argument(name: str, stream: io.BytesIO) -> Any:
    layout = _ALLOWED[name]
    if layout:
        return struct.unpack(layout, _take(stream, struct.calcsize(layout)))[0]
    try:
        if name == "BINUNICODE":
            return _take(stream, *struct.unpack("<I", _take(stream, 4))).decode("utf-8", "surrogatepass")
        if name == "GLOBAL":
            return " ".join(stream.readline().removesuffix(b"\n").decode("utf-8") for _ in range(2))
    except UnicodeDecodeError as error:
        raise _Refusal("its data.pkl holds text that is not UTF-8; it is damaged") from error
    if name == "LONG1":
        return int.from_bytes(_take(stream, *_take(stream, 1)), "little", signed=True)
    return None


def _take(stream: io.BytesIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise _Refusal("its data.pkl is cut off")
    return data


def _plain(value: object) -> object:
    # Beyond 64 bits nothing here has a use, and printing or multiplying such numbers can take for ever.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Refusal("its data.pkl holds a whole number beyond 64 bits")
    return value


def _allowed_global(name: str) -> _Global:
    if name not in _GLOBALS:
        raise _Refusal(
            f"its data.pkl names {_shown(name.replace(' ', '.', 1))}, which plain weights do not need and "
            "which is not run here; save model.state_dict() alone"
        )
    return _Global(name)


def _storage(identity: object) -> _Storage:
    match identity:
        case ("storage", _Global(name), str(key), _, int(count)) if name in _STORAGE_TYPES and count >= 0:
            return _Storage(key, name, count)
    raise _Refusal("its data.pkl describes a storage in a way that torch.save does not")


def _rebuilt(function: object, arguments: Any) -> object:
    """Build what a call in the pickle stands for; the call itself is never made."""
    name = function.name if isinstance(function, _Global) else ""
    match name, arguments:
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_parameter", (_Tensor() as tensor, _, _):
            return tensor
        case "torch._utils _rebuild_tensor_v2", (_Storage() as storage, offset, shape, stride, _, _, *bits):
            # A last argument marks lazily negated or conjugated tensors; weights have none.
            if all(map(_whole_numbers, [(offset,), shape, stride])) and not any(bits):
                return _Tensor(storage, offset, shape, stride)
    raise _Refusal("its data.pkl builds a tensor or dict in a way that torch.save does not")


def _whole_numbers(value: object) -> bool:
    return isinstance(value, tuple) and all(type(n) is int for n in value)


def _shown(text: str) -> str:
    """Return text from the file in quotes, escaped and short enough for a sentence."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
