"""Layers of a received cache: copied to a GPU as sections, checked and unpacked there."""

import torch
from torch import Tensor

from kvcache.cache import Geometry, KVCache
from kvcache.crc32 import crc32
from kvcache.errors import WireError
from kvcache.fused.codec import ALIGN, layout_of, suits, unpack
from kvcache.fused.sending import copy_stream, queuing_on
from kvcache.quantizers import CODES, QuantizeError
from kvcache.sections import SECTION, SECTION_BYTES, Section, checked_section

SLICE_BYTES = 2**24  # about the sections of one copy; kernels run on one slice while the next is being copied
STAGES = 2**21, 2**23  # bytes of pageable memory that are collected for a copy: of the first, and of later ones
PINNED_BYTES = 2**20  # from so many bytes in a row on it pays to ask whether they are in pinned memory


class Intake:
    """Takes the sections of a cache, in pieces of any size. Errors come at the latest with `cache`.

    Pieces in pinned memory are copied to the GPU as they are. Others are collected in pinned memory first; one stage is
    filled while the one before is being copied.
    """

    def __init__(self, geometry: Geometry, positions: Tensor, length: int, device: torch.device) -> None:
        self._geometry, self._shape, self._device = geometry, geometry.shape(len(positions)), device
        self._positions, self._length = positions, length
        self._next = 0  # layer
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._cache: KVCache | None = None  # whole, but not checked
        self._results = torch.zeros(3 * geometry.layers, dtype=torch.int32, device=device)
        self._staged, self._got = torch.empty(0, dtype=torch.uint8), 0
        self._copied: torch.cuda.Event | None = None  # by the last copy

    def feed(self, piece: memoryview) -> None:
        """Take the next bytes; the caller may reuse their memory afterwards. Raises WireError."""
        while len(piece):
            if self._cache is not None:
                raise WireError(f"{len(piece)} bytes after the last layer", "trailing")
            if not self._got and len(piece) >= PINNED_BYTES and (host := _pinned(piece)) is not None:
                used = self._take(host, piece)
                piece = piece[used:]
                if used:
                    continue
            piece = piece[self._stage(piece) :]

    def cache(self) -> KVCache:
        """The whole cache, checked. Raises WireError."""
        if self._got:
            self._take_staged(last=True)
        count = self._geometry.layers
        if self._cache is None:
            raise WireError(f"the cache ends in layer {self._next} of {count}", "truncated")
        if self._got:
            raise WireError(f"{self._got} bytes after the last layer", "trailing")
        found = self._results.tolist()
        if any(found):
            for layer in range(count):
                if found[2 * count + layer]:
                    raise WireError(f"the checksum of layer {layer} differs", "checksum")
                if found[2 * layer] or found[2 * layer + 1]:
                    raise WireError(f"layer {layer}: scales that are negative or not finite", "bad_values")
        return self._cache

    def _stage(self, piece: memoryview) -> int:
        """Collect bytes; returns how many. Those of whole sections go to the GPU when there is no room for more."""
        if self._got == len(self._staged):
            self._take_staged()
        size = min(len(piece), len(self._staged) - self._got)
        self._staged.numpy().data[self._got : self._got + size] = piece[:size]
        self._got += size
        return size

    def _take_staged(self, last: bool = False) -> None:
        """Start on the staged sections; what is left of them begins a larger stage."""
        before, view = self._copied, self._staged.numpy().data[: self._got]
        used = self._start_whole(self._staged[: self._got], view)
        left = self._got - used
        room = min(STAGES[1], max(STAGES[0], 2 * len(self._staged)))
        if left and not used and not last:  # not even one section: its header, checked, says how much room it needs
            room = SECTION_BYTES + checked_section(bytes(view[:SECTION_BYTES]), self._next, self._shape).nbytes
        if last and not left:
            self._got = 0
            return
        if before is not None:
            before.synchronize()  # so that no more than two stages are in use
        stage = torch.empty(max(room, left + 1), dtype=torch.uint8, pin_memory=True)
        stage.numpy().data[:left] = view[used:]
        self._staged, self._got = stage, left

    def _take(self, host: Tensor, view: memoryview) -> int:
        """Copy the whole sections at the beginning of a pinned tensor, `view`; returns their bytes."""
        try:
            return self._start_whole(host, view)
        finally:
            copy_stream(self._device).synchronize()

    def _start_whole(self, host: Tensor, view: memoryview) -> int:
        """Start on the whole sections at the beginning of a pinned tensor, `view`; returns their bytes."""
        used = 0
        while (end := self._whole(view, used)) > used:
            self._start(host[used:end], view[used:end])
            used = end
        return used

    def _whole(self, view: memoryview, begin: int) -> int:
        """The end of a slice of whole sections by what their headers, not checked yet, say."""
        end, layer = begin, self._next
        while end + SECTION_BYTES <= len(view) and layer < self._geometry.layers and end - begin < SLICE_BYTES:
            _, _, _, key_bytes, value_bytes, _ = SECTION.unpack_from(view, end)
            if end + SECTION_BYTES + key_bytes + value_bytes > len(view):
                break
            end += SECTION_BYTES + key_bytes + value_bytes
            layer += 1
        return end

    def _start(self, host: Tensor, view: memoryview) -> None:
        """Copy, check and unpack a slice, without waiting for it."""
        stream, current = copy_stream(self._device), torch.cuda.current_stream(self._device)
        with queuing_on(stream, current):
            image = torch.empty(-(-len(view) // ALIGN) * ALIGN, dtype=torch.uint8, device=self._device)
            image[: len(view)].copy_(host, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(stream)
        sections, at = list[Section](), 0
        while at < len(view):
            head = bytes(view[at : at + SECTION_BYTES])
            sections.append(checked_section(head, self._next + len(sections), self._shape))
            at += SECTION_BYTES + sections[-1].nbytes
        current.wait_event(self._copied)
        image.record_stream(current)
        self._unpack(sections, image, view)
        self._next += len(sections)
        if self._next == self._geometry.layers:
            self._cache = KVCache(tuple(self._layers), self._positions, self._length)

    def _unpack(self, sections: list[Section], image: Tensor, view: memoryview) -> None:
        codes = tuple(section.scheme.code for section in sections)
        if all(suits(CODES[code], self._shape[2]) for code in set(codes)):
            layout = layout_of(codes, self._shape, received=True)
            if not any(offset % 4 for offset in layout.offsets):
                sums = self._results[2 * self._geometry.layers + self._next :]
                expected = [section.checksum for section in sections], sums
                flags = self._results[2 * self._next :]
                tensors = unpack(layout, image, flags, self._geometry.dtype, self._shape, expected).tensors.unbind()
                self._layers += zip(tensors[::2], tensors[1::2], strict=True)
                return
        at = 0
        for section in sections:
            at += SECTION_BYTES
            self._layers.append(self._alone(section, image[at:], view[at : at + section.nbytes]))
            at += section.nbytes

    def _alone(self, section: Section, image: Tensor, view: memoryview) -> tuple[Tensor, Tensor]:
        """A layer for which there are no kernels."""
        if crc32(view) != section.checksum:
            raise WireError(f"the checksum of layer {section.layer} differs", "checksum")
        keys, values = image[: section.key_bytes].clone(), image[section.key_bytes : section.nbytes].clone()
        try:
            return section.scheme.decode(keys, values, self._shape, self._geometry.dtype)
        except QuantizeError as error:
            raise WireError(f"layer {section.layer}: {error}", "bad_values") from None


def _pinned(piece: memoryview) -> Tensor | None:
    """The memory as a tensor, if it is pinned."""
    if piece.readonly:
        return None
    host = torch.frombuffer(piece, dtype=torch.uint8)
    return host if host.is_pinned() else None
