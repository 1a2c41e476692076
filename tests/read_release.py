#!/usr/bin/env python3
"""A second reader of releases, written from docs/release-format.md alone: nothing of the agent is in it.

    read_release.py TREE CHANNEL KEY.pub OUT [BEFORE]

makes the system image of a release in the file OUT: from groups and packs, or, with the image BEFORE of a release
before, from its bytes, the digests that changed, and deltas. It is slow (BLAKE3 in Python) and needs libzstd.
"""
import base64
import ctypes
import hashlib
import itertools
import json
import struct
import sys
from pathlib import Path

ZSTD = ctypes.CDLL("libzstd.so.1")
ZSTD.ZSTD_decompress.restype = ctypes.c_size_t
ZSTD.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


def unzstd(frame, limit):
    out = ctypes.create_string_buffer(limit)
    size = ZSTD.ZSTD_decompress(out, limit, frame, len(frame))
    assert not ZSTD.ZSTD_isError(ctypes.c_size_t(size)), "zstd refuses a frame"
    return out.raw[:size]


# BLAKE3, from its specification.
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
ORDER = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]
CORNERS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
           (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def compress(chaining, words, counter, length, flags):
    v = list(chaining) + [*IV[:4], counter & 0xFFFFFFFF, counter >> 32, length, flags]
    for turn in range(7):
        for place, (a, b, c, d) in enumerate(CORNERS):
            for word, (right, other) in zip(words[2 * place:2 * place + 2], ((16, 12), (8, 7))):
                v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
                x = v[d] ^ v[a]
                v[d] = (x >> right | x << 32 - right) & 0xFFFFFFFF
                v[c] = (v[c] + v[d]) & 0xFFFFFFFF
                x = v[b] ^ v[c]
                v[b] = (x >> other | x << 32 - other) & 0xFFFFFFFF
        words = [words[at] for at in ORDER]
    return [x ^ y for x, y in zip(v[:8], v[8:])]


def blake3(data):
    """The digest, by a stack of subtrees; the last compression of all has the flag of the root."""
    pieces = [data[at:at + 1024] for at in range(0, len(data), 1024)] or [b""]
    stack = []
    for number, piece in enumerate(pieces):
        blocks = [piece[at:at + 64] for at in range(0, len(piece), 64)] or [b""]
        chaining = IV
        for at, block in enumerate(blocks):
            is_last = at == len(blocks) - 1
            flags = (1 if at == 0 else 0) | (2 if is_last else 0) | (8 if is_last and len(pieces) == 1 else 0)
            words = struct.unpack("<16I", block.ljust(64, b"\0"))
            chaining = compress(chaining, words, number, len(block), flags)
        stack.append(chaining)
        total, is_end = number + 1, number == len(pieces) - 1
        while len(stack) > 1 and (total & 1 == 0 or is_end):
            right, left = stack.pop(), stack.pop()
            root = 8 if is_end and not stack else 0
            stack.append(compress(IV, left + right, 0, 64, 4 | root))
            total >>= 1
    return struct.pack("<8I", *stack[0])


# Ed25519 (RFC 8032, section 6), to check a signature.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P


def plus(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def times(s, p):
    q = (0, 1, 1, 0)
    while s:
        q, p, s = (plus(q, p) if s & 1 else q), plus(p, p), s >> 1
    return q


def point(data):
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    x2 = (y * y - 1) * pow(D * y * y + 1, P - 2, P)
    x = pow(x2, (P + 3) // 8, P)
    if (x * x - x2) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert (x * x - x2) % P == 0, "not a point"
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


BASE = point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def check_signature(message, signature, key):
    """The form of minisign: two letters, the number of the key, and the key or signature."""
    key, signature = (base64.b64decode(text.splitlines()[1]) for text in (key, signature))
    assert signature[:2] == b"ED" and signature[2:10] == key[2:10], "signed by another key"
    public, r, s = key[10:], signature[10:42], int.from_bytes(signature[42:], "little")
    digest = hashlib.blake2b(message).digest()
    k = int.from_bytes(hashlib.sha512(r + public + digest).digest(), "little") % L
    one, other = times(s, BASE), plus(point(r), times(k, point(public)))
    assert (one[0] * other[2] - other[0] * one[2]) % P == 0 and (one[1] * other[2] - other[1] * one[2]) % P == 0, \
        "the signature is wrong"


def part(tree, digest, start, length):
    with open(tree / "objects" / digest, "rb") as file:
        file.seek(start)
        return file.read(length)


def whole(tree, described):
    content = (tree / "objects" / described["blake3"]).read_bytes()
    assert len(content) == described["size_bytes"] and blake3(content).hex() == described["blake3"], described
    return content


class Index:
    """Chunks, each a stored chunk or None, and for each stored chunk its digest, pack, offset and length."""

    def __init__(self, content):
        magic, version, self.chunk_bytes, self.image_bytes, block, chunks, stored, extents, packs, _ = \
            struct.unpack_from("<8sIIQIIIIII", content)
        assert (magic, version, block) == (b"RFLASHIX", 2, 4096)
        at = 48
        pack = [(content[at + 40 * n:][:32].hex()) for n in range(packs)]
        extent = [struct.unpack_from("<IIQ", content, at + 40 * packs + 16 * n) for n in range(extents)]
        at += 40 * packs + 16 * extents
        numbers = struct.unpack_from(f"<{chunks}I", content, at)
        self.chunks = [None if number == 0xFFFFFFFF else number for number in numbers]
        lengths = struct.unpack_from(f"<{stored}I", content, at + 4 * chunks)
        at += 4 * (chunks + stored)
        self.digests = [content[at + 32 * n:][:32] for n in range(stored)]
        self.places = []
        for (first, number, offset), end in zip(extent, [*(e[0] for e in extent[1:]), stored]):
            for length in lengths[first:end]:
                self.places.append((pack[number], offset, length))
                offset += length

    def length(self, chunk):
        return min(self.chunk_bytes, self.image_bytes - chunk * self.chunk_bytes)


def index_content(tree, image, before):
    """The index from its parts, where there is an image before."""
    if not before:
        return unzstd(whole(tree, image["index"]), 1 << 26)
    parts, deltas = image["parts"], image["deltas"][0]
    outline = unzstd(whole(tree, parts["outline"]), 1 << 26)
    magic, version, chunk_bytes, image_bytes, chunks, stored, extents, packs = struct.unpack_from("<8sIIQIIII", outline)
    assert (magic, version, chunk_bytes) == (b"RFLASHOL", 1, parts["chunk_bytes"])
    at = 40 + 40 * packs + 16 * extents
    numbers, last = [], -1
    for step in struct.unpack_from(f"<{chunks}I", outline, at):
        if step != 0x80000000:
            last = (last + 1 + step) % 2**32
        numbers.append(0xFFFFFFFF if step == 0x80000000 else last)
    planes = outline[at + 4 * chunks:at + 4 * (chunks + stored)]
    sums = outline[at + 4 * (chunks + stored):]
    lengths = b"".join(planes[n::stored] for n in range(stored))
    digests = [bytes(32)] * stored
    changed = unzstd(whole(tree, deltas["digests"]), 1 << 26)
    count, = struct.unpack_from("<I", changed)
    number = 0
    for n, step in enumerate(struct.unpack_from(f"<{count}I", changed, 4)):
        number += step
        digests[number] = changed[4 + 4 * count + 32 * n:][:32]
    for chunk, number in enumerate(numbers):
        if number != 0xFFFFFFFF and digests[number] == bytes(32):
            digests[number] = blake3(before[chunk * chunk_bytes:(chunk + 1) * chunk_bytes])
    for page in range(0, stored, 64):
        if blake3(b"".join(digests[page:page + 64]))[:8] != sums[page // 8:page // 8 + 8]:
            some = part(tree, parts["digests"]["blake3"], 32 * page, 32 * min(64, stored - page))
            digests[page:page + 64] = [some[at:at + 32] for at in range(0, len(some), 32)]
    sizes = (chunk_bytes, image_bytes, 4096, chunks, stored, extents, packs, 0)
    content = struct.pack("<8sIIQIIIIII", b"RFLASHIX", 2, *sizes)
    content += outline[40:at] + struct.pack(f"<{chunks}I", *numbers) + lengths + b"".join(digests)
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", len(content))
    for start in range(0, len(content), 131072):
        block = content[start:start + 131072]
        frame += struct.pack("<I", len(block) << 3 | (start + 131072 >= len(content)))[:3] + block
    assert blake3(frame).hex() == image["index"]["blake3"], "the parts are not those of the index"
    return content


def number(data, at):
    value, shift = 0, 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at


def apply_delta(old, difference):
    length, at = number(difference, 0)
    end, values = at + length, []
    while at < end:
        value, at = number(difference, at)
        values.append(value)
    instructions = list(zip(values[::3], values[1::3], values[2::3]))
    sums, copies = end, end + sum(add for add, _, _ in instructions)
    new, position = bytearray(), 0
    for add, copy, seek in instructions:
        new += bytes((a + b) % 256 for a, b in zip(old[position:position + add], difference[sums:sums + add]))
        new += difference[copies:copies + copy]
        sums, copies = sums + add, copies + copy
        position += add + (seek >> 1 ^ -(seek & 1))
    assert copies == len(difference), "something is left of a delta"
    return bytes(new)


def from_groups(tree, index, described):
    """The stored chunks that are compressed together with others."""
    table = unzstd(whole(tree, described), 1 << 26)
    magic, version, packs, count, members = struct.unpack_from("<8sIIII", table)
    assert (magic, version) == (b"RFLASHGR", 1)
    at, found, following = 24 + 40 * packs, {}, 0
    steps = iter(struct.unpack_from(f"<{members}I", table, at + 36 * count))
    for entry in range(count):
        pack, length, offset, group_members, digest = struct.unpack_from("<IIQI16s", table, at + 36 * entry)
        group = part(tree, table[24 + 40 * pack:][:32].hex(), offset, length)
        assert blake3(group)[:16] == digest, f"group {entry} is damaged"
        content = unzstd(group, group_members * index.chunk_bytes)
        for start in range(0, len(content), index.chunk_bytes):
            step = next(steps)
            if step != 0x80000000:
                number = (following + step) % 2**32
                found[number], following = content[start:start + index.chunk_bytes], number + 1
    return found


def from_deltas(tree, index, deltas, before):
    """The chunks that deltas make of the image before."""
    table = unzstd(whole(tree, deltas["table"]), 1 << 26)
    magic, version, count, chunks, ranges = struct.unpack_from("<8sIIII", table)
    assert (magic, version) == (b"RFLASHDT", 1)
    steps = struct.unpack_from(f"<{chunks}I", table, 24 + 36 * count)
    spans = iter(struct.unpack_from(f"<{2 * ranges}I", table, 24 + 36 * count + 4 * chunks))
    made, chunks, end, offset = {}, itertools.accumulate(steps), 0, 0
    for entry in range(count):
        length, chunk_count, range_count, _, digest = struct.unpack_from("<IIIQ16s", table, 24 + 36 * entry)
        delta = part(tree, deltas["pack"]["blake3"], offset, length)
        assert blake3(delta)[:16] == digest, f"delta {entry} is damaged"
        offset += length
        old = b""
        for _ in range(range_count):
            start = (end + next(spans)) % 2**32
            end = start + next(spans)
            old += before[4096 * start:4096 * end]
        numbers = [next(chunks) for _ in range(chunk_count)]
        new = apply_delta(old, unzstd(delta, sum(map(index.length, numbers)) + 65536))
        for number in numbers:
            made[number], new = new[:index.length(number)], new[index.length(number):]
    return made


def main(tree, channel, key, out, before=None):
    tree = Path(tree)
    manifest = (tree / channel / "manifest.json").read_bytes()
    check_signature(manifest, (tree / channel / "manifest.json.minisig").read_text(), Path(key).read_text())
    image = json.loads(manifest)["images"][0]
    before = Path(before).read_bytes() if before else b""
    assert not before or hashlib.sha256(before).hexdigest() == image["deltas"][0]["from"], "deltas for another image"
    index = Index(index_content(tree, image, before))
    made = from_deltas(tree, index, image["deltas"][0], before) if before else {}
    stored = from_groups(tree, index, image["groups"]) if not before and "groups" in image else {}
    grouped, fetched = len(stored), 0
    with open(out, "w+b") as file:
        for chunk, number in enumerate(index.chunks):
            length = index.length(chunk)
            content = bytes(length) if number is None else made.get(chunk, before[chunk * index.chunk_bytes:][:length])
            if number is not None and blake3(content) != index.digests[number]:
                if number not in stored:
                    stored[number] = unzstd(part(tree, *index.places[number]), length)
                    fetched += index.places[number][2]
                content = stored[number]
                assert blake3(content) == index.digests[number], f"stored chunk {number} is damaged"
            file.write(content)
        file.seek(0)
        assert hashlib.sha256(file.read()).hexdigest() == image["sha256"], "the image has another SHA-256"
    print(f"{len(index.chunks)} chunks, {len(made)} of deltas, {grouped} of groups, {fetched} bytes of packs")


main(*sys.argv[1:])
