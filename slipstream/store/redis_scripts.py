"""What Redis does for us, each in one script: atomic, and checked on the way there and back.

A request carries a hash of its keys and arguments, which the script compares before it does
anything; an answer carries one over itself and the request's. So bytes that were changed on the
way, a lost part, or an answer to something else show. What is kept has a checksum of its own,
together with its key.

A script's keys are in one slot, as a Cluster wants it. Documents are a string (version, checksum,
value); logs a list (a head, then records); an index two sorted sets, by text and by expiry.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha1

PREFIX = "slipstream:"
PING_KEY = f"{PREFIX}ping"

_PRELUDE = """
local function framed(parts, count)
  local sizes = {}
  for i = 1, count do sizes[i] = #parts[i] end
  return table.concat(sizes, ',') .. ':' .. table.concat(parts, '', 1, count)
end
local sum = ARGV[#ARGV]
if redis.sha1hex(framed(KEYS, #KEYS) .. framed(ARGV, #ARGV - 1)) ~= sum then
  return redis.error_reply('DAMAGED the request is not what was sent')
end
local function answer(parts)
  local text = framed(parts, #parts)
  return text .. redis.sha1hex(sum .. text)
end
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function whole(number) return string.format('%016.0f', number) end
local function check(text, size) return string.sub(redis.sha1hex(KEYS[1] .. text), 1, size) end
"""

# Of a document: the version, 16 digits; checksum, 16 letters; value.
_VERSION = """
local current = redis.call('GETRANGE', KEYS[1], 0, 15)
if current == '' then current = 0 else current = tonumber(current) end
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= current then
  return answer({'conflict', whole(current)})
end
"""

# Of a log's head: fence, 20 digits; length, 16; time of the last beat, 16; ended, 1; checksum, 8.
_HEAD = """
local head = redis.call('LINDEX', KEYS[1], 0)
local function set_head(fence, length, ended)
  local text = fence .. whole(length) .. whole(now()) .. ended
  text = text .. check(text, 8)
  if head then redis.call('LSET', KEYS[1], 0, text) else redis.call('RPUSH', KEYS[1], text) end
  return text
end
local function length() return tonumber(string.sub(head, 21, 36)) end
"""


class Damaged(Exception):
    """An answer is not what Redis sent, or belongs to something else."""


class Script:
    """Lua by its hash, under which Redis remembers it."""

    def __init__(self, body: str) -> None:
        self.source = (_PRELUDE + body).encode()
        self.hash = sha1(self.source, usedforsecurity=False).hexdigest().encode()


GET = Script("""
local found = redis.call('GET', KEYS[1])
return answer({found or nil})
""")

PUT = Script(
    _VERSION
    + """
local version = whole(current + 1)
local value = check(version .. ARGV[4], 16) .. ARGV[4]
redis.call('SET', KEYS[1], version .. value, 'PX', ARGV[3])
return answer({'ok', version})
"""
)

DELETE = Script(
    _VERSION
    + """
redis.call('UNLINK', KEYS[1])
return answer({'ok', whole(current)})
"""
)

LOG_OPEN = Script(
    _HEAD
    + """
local size = 0
if head then
  if string.sub(head, 1, 20) >= ARGV[2] then
    return answer({'fenced', string.sub(head, 1, 20)})
  end
  size = length()
end
local parts = {'ok', set_head(ARGV[2], size, head and string.sub(head, 53, 53) or '0')}
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for _, record in ipairs(redis.call('LRANGE', KEYS[1], 1, -1)) do parts[#parts + 1] = record end
return answer(parts)
"""
)

LOG_APPEND = Script(
    _HEAD
    + """
if not head then return answer({'missing'}) end
if string.sub(head, 1, 20) ~= ARGV[2] then return answer({'fenced'}) end
if length() ~= tonumber(ARGV[3]) or string.sub(head, 53, 53) == '1' then return answer({'gap'}) end
if ARGV[7] ~= '' then redis.call('RPUSH', KEYS[1], ARGV[7]) end
set_head(ARGV[2], length() + ARGV[4], ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return answer({'ok'})
"""
)

# The first record that is wanted is the last one that begins before the position, if it reaches
# beyond it, or the one after that.
LOG_READ = Script(
    _HEAD
    + """
if not head then return answer({}) end
local function start(i) return struct.unpack('>I4', redis.call('LINDEX', KEYS[1], i)) end
local from, size = tonumber(ARGV[2]), redis.call('LLEN', KEYS[1])
local low, high = 1, size
while low < high do
  local middle = math.floor((low + high) / 2)
  if start(middle) >= from then high = middle else low = middle + 1 end
end
if low > 1 and (low < size and start(low) or length()) > from then low = low - 1 end
local parts = {head, whole(now())}
for _, record in ipairs(redis.call('LRANGE', KEYS[1], low, -1)) do parts[#parts + 1] = record end
return answer(parts)
"""
)

REMOVE = Script("""
redis.call('UNLINK', KEYS[1])
return answer({})
""")

# Expired members are not counted, and leave a few at a time. Where there is a bound, a member that
# lives needs no room, and is not made to end sooner.
INDEX_ADD = Script("""
local time, expires = now(), now() + ARGV[3]
if ARGV[4] ~= '' then
  local living = redis.call('ZCOUNT', KEYS[2], '(' .. time, '+inf')
  local before = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or 0)
  if before <= time and living >= tonumber(ARGV[4]) then return answer({whole(living)}) end
  expires = math.max(expires, before)
end
redis.call('ZADD', KEYS[1], 0, ARGV[2])
redis.call('ZADD', KEYS[2], expires, ARGV[2])
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', time, 'LIMIT', 0, 8)) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('ZREM', KEYS[2], member)
end
local left = math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], left)
redis.call('PEXPIRE', KEYS[2], left)
return answer({})
""")

INDEX_REMOVE = Script("""
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
return answer({})
""")

# So many members at most are looked at in one go; the answer says whether there are more, and
# begins with the last one that was.
INDEX_LIST = Script("""
local after, limit, time = ARGV[2], tonumber(ARGV[3]), now()
local from = after == '' and '-' or '(' .. after
local parts = {'0', after}
local found = redis.call('ZRANGEBYLEX', KEYS[1], from, '+', 'LIMIT', 0, ARGV[4])
for i, member in ipairs(found) do
  local expires = redis.call('ZSCORE', KEYS[2], member)
  if expires and tonumber(expires) > time then
    parts[#parts + 1] = member
  else
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[2], member)
  end
  parts[2] = member
  if #parts - 2 == limit then break end
end
if #found == tonumber(ARGV[4]) and #parts - 2 < limit then parts[1] = '1' end
return answer(parts)
""")

PING = Script("""
redis.call('SET', KEYS[1], ARGV[2], 'PX', 60000)
return answer({redis.call('GET', KEYS[1])})
""")

_HASH = 40
# No two requests of all processes are the same, and so no two answers.
_process = os.urandom(8).hex()
_turn = itertools.count()


@dataclass(frozen=True, slots=True)
class Request:
    """One script with its keys and arguments, and their hash."""

    script: Script
    keys: tuple[bytes, ...]
    args: tuple[bytes, ...]

    def command(self, *, whole: bool) -> list[bytes]:
        """With the script's source in it (`whole`), or by its hash, as Redis may know it."""
        name = [b"EVAL", self.script.source] if whole else [b"EVALSHA", self.script.hash]
        return [*name, b"%d" % len(self.keys), *self.keys, *self.args]

    def opened(self, reply: object) -> list[bytes]:
        """The answer without its hash.

        Raises:
            Damaged: it is not the answer to this request, or not as Redis sent it.
        """
        if not isinstance(reply, bytes):
            raise Damaged("an answer of another form")
        text, found = reply[:-_HASH], reply[-_HASH:]
        if _hash(self.args[-1], text) != found:
            raise Damaged("an answer that is not what Redis sent")
        return _parts(text)


def request(script: Script, keys: Sequence[str], *args: str | bytes | int) -> Request:
    """Keys and arguments as the script has them; its ARGV[2] is the first of `args`."""
    names = [key.encode() for key in keys]
    given = [f"{_process}{next(_turn):x}".encode(), *map(_bytes, args)]
    return Request(script, tuple(names), (*given, _hash(_framed(names), _framed(given))))


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _framed(parts: Sequence[bytes]) -> bytes:
    sizes = ",".join([str(len(part)) for part in parts])
    return b"".join((sizes.encode(), b":", *parts))


def _parts(text: bytes) -> list[bytes]:
    """Undoes `_framed`."""
    sizes, _, content = text.partition(b":")
    ends = list(itertools.accumulate(map(int, sizes.split(b",")))) if sizes else []
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _hash(*parts: bytes) -> bytes:
    return sha1(b"".join(parts), usedforsecurity=False).hexdigest().encode()
