"""What lies in Redis: every key, every value, how long each lives, and what breaks when it is changed (ADR 6).

    reranker:2:<fingerprint>:{<query>}:0 … :7   pages: hashes of pair digest ▶ value; live for REDIS_TTL_SECONDS from their first write
    reranker:2:<fingerprint>:{<query>}:claims   hash of pair digest ▶ who computes the pair; lives for one lease from the last claim
    reranker:2:cleared:<fingerprint>            when `make cache-clear` last ran; entry workers forget too when it changes; lives for a day

The braces make the digest of the query decide on the cluster slot, so that one script call reaches all pairs of a request.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from functools import cache

from bento_service.cache.keys import DIGEST_BYTES, KEY_VERSION
from bento_service.pairs import KnownScore

# Everything of ours begins so. Changing it orphans what is stored, until it expires.
PREFIX = f"reranker:{KEY_VERSION}:"
# Hex digits of the fingerprint in a key, for `make cache-clear`; the digests behind it hold the whole fingerprint.
FINGERPRINT_DIGITS = 16
# A hash is kept in Redis's compact form up to 512 fields (the default of 6.2 and 7.0); more would cost three times the memory.
PAGE_PAIRS = 512
# Servers with different numbers of pages would look for each other's pairs in vain.
PAGES = 8
# Pairs of one query that Redis keeps, and that one call asks for; Lua's unpack takes no more than 8000 values.
MOST_PAIRS = PAGE_PAIRS * PAGES
TOKEN_BYTES = 12
CLEARED_SECONDS = 86_400

# float32 raw score, token count, flags, checksum. Servers of different layouts must differ in KEY_VERSION.
_VALUE = struct.Struct("<fIB")
# Where documents are read in windows: the span of the best one, too. All values of one query are of one kind.
_SPAN = struct.Struct("<fIBII")
_CHECK = struct.Struct("<I")
VALUE_BYTES, SPAN_VALUE_BYTES = _VALUE.size + _CHECK.size, _SPAN.size + _CHECK.size
_TRUNCATED = 1


def query_keys(fingerprint: str, query: bytes) -> list[str]:
    """Name the claims and the pages of a query, as the scripts take them. query: its digest (keys.PairKeys)."""
    tag = base64.urlsafe_b64encode(query).rstrip(b"=").decode()
    base = f"{PREFIX}{fingerprint[:FINGERPRINT_DIGITS]}:{{{tag}}}:"
    return [base + "claims", *(f"{base}{page}" for page in range(PAGES))]


def cleared_key(fingerprint: str) -> str:
    """Name the mark that `make cache-clear` leaves."""
    return f"{PREFIX}cleared:{fingerprint[:FINGERPRINT_DIGITS]}"


def pack_value(pair: bytes, known: KnownScore) -> bytes:
    """Encode a score; the checksum covers the pair's digest, so that no other pair's value passes for it."""
    fields = known.raw, known.token_count, _TRUNCATED if known.truncated else 0
    value = _SPAN.pack(*fields, *known.span) if known.span else _VALUE.pack(*fields)
    return value + _CHECK.pack(zlib.crc32(value, zlib.crc32(pair)))


def unpack_value(pair: bytes, blob: bytes) -> KnownScore | None:
    """Decode what pack_value() made; None for anything else."""
    value, check = blob[: -_CHECK.size], blob[-_CHECK.size :]
    if len(blob) not in (VALUE_BYTES, SPAN_VALUE_BYTES) or check != _CHECK.pack(zlib.crc32(value, zlib.crc32(pair))):
        return None
    raw, token_count, flags, *span = (_SPAN if len(blob) == SPAN_VALUE_BYTES else _VALUE).unpack(value)
    return KnownScore(raw, token_count, bool(flags & _TRUNCATED), tuple(span) or None) if math.isfinite(raw) else None


def unpack_values(pairs: Sequence[bytes], blob: bytes) -> list[KnownScore | None]:
    """Decode the values of several pairs of one query, one behind the other."""
    size = len(blob) // max(1, len(pairs))
    return [unpack_value(pair, blob[size * place : size * (place + 1)]) for place, pair in enumerate(pairs)]


@cache
def script_for(script: str, *, windows: bool) -> str:
    """Fit a script to the values of a query. windows: its documents are read in windows."""
    return script.replace(_VALUE_SIZE, f"VALUE = {SPAN_VALUE_BYTES}") if windows else script


_VALUE_SIZE = f"VALUE = {VALUE_BYTES}"
_COMMON = (
    f"local DIGEST, TOKEN, CHUNK = {DIGEST_BYTES}, {TOKEN_BYTES}, 1000\nlocal {_VALUE_SIZE}\n"
    """
local function cut(blob, size)
  local parts = {}
  for first = 1, #blob, size do parts[#parts + 1] = string.sub(blob, first, first + size - 1) end
  return parts
end

-- Whether a hash is there; anything else under our name is rubbish and makes room.
local function is_hash(key)
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'hash' and kind ~= 'none' then redis.pcall('UNLINK', key) end
  return kind == 'hash'
end

-- HSET or HDEL with any number of arguments; returns Redis's refusal, if it refuses.
local function write(command, key, arguments)
  for first = 1, #arguments, CHUNK do
    local answer = redis.pcall(command, key, unpack(arguments, first, math.min(first + CHUNK - 1, #arguments)))
    if type(answer) == 'table' and answer.err then return answer.err end
  end
end

local function read(key, fields)
  if #fields == 0 or not is_hash(key) then return {} end
  return redis.call('HMGET', key, unpack(fields))
end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A claim is the owner's token, when it began, when its lease ends, and when the pair went to a Scorer (0: not yet).
local function pack_claim(token, begun, ends, sent)
  return token .. string.format('%.0f:%.0f:%.0f', begun, ends, sent)
end

local function unpack_claim(claim)
  if not claim then return nil end
  local begun, ends, sent = string.match(string.sub(claim, TOKEN + 1), '^(%d+):(%d+):(%d+)$')
  return string.sub(claim, 1, TOKEN), tonumber(begun), tonumber(ends), tonumber(sent)
end

-- Whether somebody computes the pair and may be waited for. Times that lie ahead are rubbish, or the clock was set back.
local function is_held(now, lease, most_age, begun, ends, sent)
  if not begun or now >= ends or ends > now + lease or begun > now or sent > now then return false end
  if sent > 0 then return now - sent < math.max(most_age, lease) end
  return now - begun < most_age
end

-- Look up in all pages; calls put(n, value) for the n-th field where there is a value.
local function find(fields, put)
  local missing = {}
  for n = 1, #fields do missing[n] = n end
  for page = 2, #KEYS do
    if #missing == 0 then return end
    local asked = {}
    for m, n in ipairs(missing) do asked[m] = fields[n] end
    local found, still = read(KEYS[page], asked), {}
    for m, n in ipairs(missing) do
      if found[m] and #found[m] == VALUE then put(n, found[m]) else still[#still + 1] = n end
    end
    missing = still
  end
end
"""
)

# KEYS claims, pages · ARGV token, lease ms, age ms at which a claim may be taken over, pair digests
# returns one letter a pair (h known, o ours to compute, w somebody computes it), the values of the known ones, a refusal or ''
CLAIM = (
    _COMMON
    + """
local token, lease, most_age, fields = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), cut(ARGV[4], DIGEST)
local state, values, now, ours, free, free_places = {}, {}, milliseconds(), {}, {}, {}
local claims = read(KEYS[1], fields)
for place = 1, #fields do
  values[place] = ''
  local owner, begun, ends, sent = unpack_claim(claims[place])
  if owner and owner ~= token and is_held(now, lease, most_age, begun, ends, sent) then
    state[place] = 'w'
  else
    state[place] = 'o'
    free[#free + 1] = fields[place]
    free_places[#free_places + 1] = place
  end
end
find(free, function(n, value) state[free_places[n]] = 'h'; values[free_places[n]] = value end)
for place = 1, #fields do
  if state[place] == 'o' then
    ours[#ours + 1] = fields[place]
    ours[#ours + 1] = pack_claim(token, now, now + lease, 0)
  end
end
local refusal = write('HSET', KEYS[1], ours) or ''
if refusal == '' and #ours > 0 then redis.call('PEXPIRE', KEYS[1], lease) end
return {table.concat(state), table.concat(values), refusal}
"""
)

# KEYS claims, pages · ARGV token, time to live ms, pairs of a page, '1' to overwrite, digests to store, their values, digests to release
# returns a refusal or ''
SETTLE = (
    _COMMON
    + """
local token, ttl, room, overwrite = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local fields, values, released = cut(ARGV[5], DIGEST), cut(ARGV[6], VALUE), cut(ARGV[7], DIGEST)
local refusal, home, free, needed, left = nil, {}, {}, 0, 0

for page = 2, #KEYS do
  local found = read(KEYS[page], fields)
  for n = 1, #fields do
    if found[n] and #found[n] == VALUE then home[n] = page end
  end
  free[page] = math.max(0, room - (is_hash(KEYS[page]) and redis.call('HLEN', KEYS[page]) or 0))
  left = left + free[page]
end
for n = 1, #fields do
  if not home[n] then needed = needed + 1 end
end

-- Where the pages are full, those that would go first make room now.
local emptied = {}
while needed > left and not refusal do
  local first, least
  for page = 2, #KEYS do
    local time = redis.call('PTTL', KEYS[page])
    if not emptied[page] and (not least or time < least) then first, least = page, time end
  end
  if not first then break end
  local answer = redis.pcall('UNLINK', KEYS[first])
  if type(answer) == 'table' and answer.err then refusal = answer.err end
  emptied[first] = true
  left = left + room - free[first]
  free[first] = room
  for n = 1, #fields do
    if home[n] == first then home[n] = nil; needed = needed + 1 end
  end
end

local writes, page = {}, 2
for n, field in ipairs(fields) do
  local target = home[n]
  if not target then
    while free[page] and free[page] <= 0 do page = page + 1 end
    target = free[page] and page
    if target then free[page] = free[page] - 1 end
  elseif not overwrite then
    target = nil
  end
  if target and not refusal then
    writes[target] = writes[target] or {}
    table.insert(writes[target], field)
    table.insert(writes[target], values[n])
  end
end
for each, arguments in pairs(writes) do
  is_hash(KEYS[each])
  refusal = write('HSET', KEYS[each], arguments) or refusal
  if not refusal and redis.call('PTTL', KEYS[each]) < 0 then redis.call('PEXPIRE', KEYS[each], ttl) end
end

-- Released are our own claims; and whoever claims what is known now needs to compute it no more.
local done, claims = {}, read(KEYS[1], released)
for n, field in ipairs(released) do
  if claims[n] and string.sub(claims[n], 1, TOKEN) == token then done[#done + 1] = field end
end
if not refusal and is_hash(KEYS[1]) then
  for _, field in ipairs(fields) do done[#done + 1] = field end
end
refusal = write('HDEL', KEYS[1], done) or refusal
return refusal or ''
"""
)

# KEYS claims, pages · ARGV token, lease ms, digests, one digit a digest: 1 where it is with a Scorer
# returns one digit a digest: 0 where it is somebody else's by now, or known
RENEW = (
    _COMMON
    + """
local token, lease, fields, sent_flags = ARGV[1], tonumber(ARGV[2]), cut(ARGV[3], DIGEST), ARGV[4]
local claims, now, ours, still, gone, gone_places = read(KEYS[1], fields), milliseconds(), {}, {}, {}, {}
for n, field in ipairs(fields) do
  local owner, begun, ends, sent = unpack_claim(claims[n])
  local under_way = string.sub(sent_flags, n, n) == '1'
  if owner == token and begun then
    still[n] = '1'
    sent = under_way and (sent > 0 and math.min(sent, now) or now) or 0
    ours[#ours + 1] = field
    ours[#ours + 1] = pack_claim(token, math.min(begun, now), now + lease, sent)
  elseif owner and is_held(now, lease, math.huge, begun, ends, sent) then
    still[n] = '0'
  else
    still[n] = '1'
    gone[#gone + 1] = field
    gone_places[#gone_places + 1] = n
  end
end
-- Claims that are gone were lost with a restart, unless somebody has stored the score since.
find(gone, function(m) still[gone_places[m]] = '0' end)
for m, n in ipairs(gone_places) do
  if still[n] == '1' then
    ours[#ours + 1] = fields[n]
    ours[#ours + 1] = pack_claim(token, now, now + lease, string.sub(sent_flags, n, n) == '1' and now or 0)
  end
end
if write('HSET', KEYS[1], ours) == nil and #ours > 0 then redis.call('PEXPIRE', KEYS[1], lease) end
return table.concat(still)
"""
)
