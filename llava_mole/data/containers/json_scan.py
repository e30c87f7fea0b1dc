"""Where the records of a JSON file lie, found in one pass over its bytes without parsing it.

A list's elements are told apart by the commas at its own level: outside strings, outside any inner
bracket. Bytes go through numpy in chunks; what a chunk leaves open (a string, an escape, the depth)
is carried into the next. Nothing is checked here beyond that: a record is parsed when it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

CHUNK = 2**22
SPACE = b" \t\r\n"

_COMMA, _QUOTE, _BACKSLASH, _NEWLINE = 44, 34, 92, 10
_MARKS = bytes(int(byte in b'"[]{},') for byte in range(256))
_STEP = np.zeros(256, dtype=np.int8)
_STEP[[91, 123]] = 1  # [ {
_STEP[[93, 125]] = -1  # ] }


@dataclass
class Spans:
    """Record i is bytes `starts[i]:stops[i]`, with white space around it; each array (n,) int64."""

    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    lines: NDArray[np.int64]
    """line of the byte at `starts[i]`, from 1"""
    end: int
    """offset of the list's closing bracket, or of what was left open after the last record"""
    end_line: int
    closed_by: str
    """the bracket that closed the list; "" if the file ended before"""


def scan_list(
    file: BinaryIO,
    begin: int,
    line: int,
    *,
    chunk_size: int = CHUNK,
    advance: Callable[[int], object] = lambda count: None,
) -> Spans:
    """Spans of the elements of a JSON list.

    Args:
        file: opened for bytes.
        begin: offset of the list's '['.
        line: its line.
        chunk_size: bytes read at a time.
        advance: told how many bytes were read.
    """
    file.seek(begin + 1)
    offset = begin + 1
    depth, inside, escaping = 1, 0, 0
    separators = [np.array([begin], dtype=np.int64)]
    lines = [np.array([line], dtype=np.int64)]
    closed_by = ""
    end = end_line = 0
    while not closed_by and (chunk := file.read(chunk_size)):
        data = np.frombuffer(chunk, dtype=np.uint8)
        marks = np.flatnonzero(np.frombuffer(chunk.translate(_MARKS), dtype=np.uint8))
        codes = data[marks]
        quotes = codes == _QUOTE
        escaped, escaping = _escaped(data, marks[quotes], escaping)
        quotes[quotes] = ~escaped
        strings = np.cumsum(quotes) + inside
        inside = int(strings[-1]) & 1 if len(strings) else inside
        outside = (codes != _QUOTE) & (strings & 1 == 0)
        marks, codes = marks[outside], codes[outside]
        levels = depth + np.cumsum(_STEP[codes], dtype=np.int64)
        if len(levels):
            depth = int(levels[-1])
        newlines = np.flatnonzero(data == _NEWLINE)
        closing = np.flatnonzero(levels == 0)
        if len(closing):
            first = int(closing[0])
            place = int(marks[first])
            closed_by, end = chr(codes[first]), offset + place
            end_line = line + int(np.searchsorted(newlines, place))
            marks, codes, levels = marks[:first], codes[:first], levels[:first]
        commas = marks[(codes == _COMMA) & (levels == 1)]
        separators.append(offset + commas.astype(np.int64))
        lines.append(line + np.searchsorted(newlines, commas).astype(np.int64))
        line += len(newlines)
        offset += len(chunk)
        advance(len(chunk))
    bounds = np.concatenate(separators)
    at = np.concatenate(lines)
    if closed_by:
        return Spans(bounds + 1, np.append(bounds[1:], end), at, end, end_line, closed_by)
    return Spans(bounds[:-1] + 1, bounds[1:], at[:-1], int(bounds[-1]) + 1, int(at[-1]), "")


def _escaped(
    data: NDArray[np.uint8], quotes: NDArray[np.intp], carried: int
) -> tuple[NDArray[np.bool_], int]:
    """Which quotes stand behind an odd run of backslashes, and whether such a run ends the chunk.

    Args:
        data: the chunk, (n,).
        quotes: places of quotes in it.
        carried: 1 if an odd run ended the chunk before.
    """
    slashes = np.flatnonzero(data == _BACKSLASH)
    escaped = np.zeros(len(quotes), dtype=bool)
    if carried and len(quotes) and quotes[0] == 0:
        escaped[0] = True
    if not len(slashes):
        return escaped, 0
    new_run = np.ones(len(slashes), dtype=bool)
    new_run[1:] = np.diff(slashes) != 1
    run_start = slashes[new_run][np.cumsum(new_run) - 1]  # of each backslash's own run
    odd = ((slashes - run_start + 1 + carried * (run_start == 0)) & 1).astype(bool)
    before = np.searchsorted(slashes, quotes - 1).clip(max=len(slashes) - 1)
    behind = slashes[before] == quotes - 1
    escaped[behind] = odd[before[behind]]
    return escaped, int(odd[-1] and slashes[-1] == len(data) - 1)


def scan_lines(
    file: BinaryIO,
    begin: int,
    *,
    chunk_size: int = CHUNK,
    advance: Callable[[int], object] = lambda count: None,
) -> Spans:
    """Spans of the lines that hold more than white space, from offset `begin` in line 1."""
    file.seek(begin)
    offset = begin
    breaks, blank_starts = [], [np.empty(0, dtype=np.int64)]
    starts_line = True
    while chunk := file.read(chunk_size):
        data = np.frombuffer(chunk, dtype=np.uint8)
        newlines = np.flatnonzero(data == _NEWLINE).astype(np.int64)
        heads = newlines[newlines < len(data) - 1] + 1
        if starts_line:
            heads = np.concatenate([[0], heads])
        # A line that begins with white space may be nothing but that: looked at below.
        blank_starts.append(offset + heads[np.isin(data[heads], list(SPACE))])
        breaks.append(offset + newlines)
        starts_line = data[-1] == _NEWLINE
        offset += len(chunk)
        advance(len(chunk))
    stops = np.concatenate([*breaks, np.array([] if starts_line else [offset], dtype=np.int64)])
    starts = np.concatenate([np.array([begin], dtype=np.int64), stops[:-1] + 1])[: len(stops)]
    keep = np.ones(len(starts), dtype=bool)
    for number in np.searchsorted(starts, np.concatenate(blank_starts)):
        file.seek(starts[number])
        keep[number] = bool(file.read(int(stops[number] - starts[number])).strip(SPACE))
    lines = np.arange(1, len(starts) + 1)[keep]
    return Spans(starts[keep], stops[keep], lines, offset, len(starts), "\n")
