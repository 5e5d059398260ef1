"""What lies in Redis: every key, every value, how long each lives, and what breaks when it is changed (ADR 6).

    reranker:1:<fingerprint>:{<query>}:0 … :7   pages: hashes of pair digest ▶ value; live for REDIS_TTL_SECONDS from their first write
    reranker:1:<fingerprint>:{<query>}:claims   hash of pair digest ▶ who computes the pair; lives for one lease from the last claim
    reranker:1:cleared:<fingerprint>            when `make cache-clear` last ran; entry workers forget too when it changes; lives for a day

The braces make the digest of the query decide on the cluster slot, so that one script call reaches all pairs of a request.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence

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
_CHECK = struct.Struct("<I")
VALUE_BYTES = _VALUE.size + _CHECK.size
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
    value = _VALUE.pack(known.raw, known.token_count, _TRUNCATED if known.truncated else 0)
    return value + _CHECK.pack(zlib.crc32(value, zlib.crc32(pair)))


def unpack_value(pair: bytes, blob: bytes) -> KnownScore | None:
    """Decode what pack_value() made; None for anything else."""
    value, check = blob[: _VALUE.size], blob[_VALUE.size :]
    if check != _CHECK.pack(zlib.crc32(value, zlib.crc32(pair))):
        return None
    raw, token_count, flags = _VALUE.unpack(value)
    return KnownScore(raw, token_count, bool(flags & _TRUNCATED)) if math.isfinite(raw) else None


def unpack_values(pairs: Sequence[bytes], blob: bytes) -> list[KnownScore | None]:
    """Decode the values of several pairs, one behind the other."""
    return [unpack_value(pair, blob[VALUE_BYTES * place : VALUE_BYTES * (place + 1)]) for place, pair in enumerate(pairs)]


_COMMON = f"""
local DIGEST, TOKEN, VALUE, CHUNK = {DIGEST_BYTES}, {TOKEN_BYTES}, {VALUE_BYTES}, 1000

local function cut(blob, size)
  local parts = {{}}
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
  if #fields == 0 or not is_hash(key) then return {{}} end
  return redis.call('HMGET', key, unpack(fields))
end

local function milliseconds()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A claim is the owner's token, when it began and when its lease ends.
local function begun_and_end(claim)
  local begun, ends = string.match(string.sub(claim, TOKEN + 1), '^(%d+):(%d+)$')
  return tonumber(begun), tonumber(ends)
end
"""

# KEYS claims, pages · ARGV token, lease ms, age ms at which a claim may be taken over, pair digests
# returns one letter a pair (h known, o ours to compute, w somebody computes it), the values of the known ones, a refusal or ''
CLAIM = (
    _COMMON
    + """
local token, lease, most_age, fields = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), cut(ARGV[4], DIGEST)
local state, values, missing = {}, {}, {}
for place = 1, #fields do values[place] = ''; missing[place] = place end

local function asked()
  local digests = {}
  for n, place in ipairs(missing) do digests[n] = fields[place] end
  return digests
end

for page = 2, #KEYS do
  local found, still = read(KEYS[page], asked()), {}
  for n, place in ipairs(missing) do
    local value = found[n]
    if value and #value == VALUE then
      state[place] = 'h'; values[place] = value
    else
      still[#still + 1] = place
    end
  end
  missing = still
  if #missing == 0 then break end
end

local refusal = ''
if #missing > 0 then
  local now, claims, ours = milliseconds(), read(KEYS[1], asked()), {}
  for n, place in ipairs(missing) do
    local begun, ends
    if claims[n] and string.sub(claims[n], 1, TOKEN) ~= token then begun, ends = begun_and_end(claims[n]) end
    if begun and ends and now < ends and now - begun < most_age then
      state[place] = 'w'
    else
      state[place] = 'o'
      ours[#ours + 1] = fields[place]
      ours[#ours + 1] = token .. string.format('%.0f:%.0f', now, now + lease)
    end
  end
  refusal = write('HSET', KEYS[1], ours) or ''
  if refusal == '' and #ours > 0 then redis.call('PEXPIRE', KEYS[1], lease) end
end
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
local refusal, home, free = nil, {}, {}

for page = 2, #KEYS do
  local found = read(KEYS[page], fields)
  for n = 1, #fields do
    if found[n] and #found[n] == VALUE then home[n] = page end
  end
  free[page] = room - (is_hash(KEYS[page]) and redis.call('HLEN', KEYS[page]) or 0)
end

local writes, page = {}, 2
for n, field in ipairs(fields) do
  local target = home[n]
  if not target then
    while page <= #KEYS and free[page] <= 0 do page = page + 1 end
    if page > #KEYS then
      -- All pages are full: the one that would go first makes room now.
      local least
      for each = 2, #KEYS do
        local left = redis.call('PTTL', KEYS[each])
        if not writes[each] and (not least or left < least) then page, least = each, left end
      end
      if not least then break end
      redis.call('UNLINK', KEYS[page])
      free[page] = room
    end
    target = page
    free[page] = free[page] - 1
  elseif not overwrite then
    target = nil
  end
  if target then
    writes[target] = writes[target] or {}
    table.insert(writes[target], field)
    table.insert(writes[target], values[n])
  end
end
for each, arguments in pairs(writes) do
  local new = not is_hash(KEYS[each])
  refusal = write('HSET', KEYS[each], arguments) or refusal
  if new and not refusal then redis.call('PEXPIRE', KEYS[each], ttl) end
end

local ours, claims = {}, read(KEYS[1], released)
for n, field in ipairs(released) do
  if claims[n] and string.sub(claims[n], 1, TOKEN) == token then ours[#ours + 1] = field end
end
refusal = write('HDEL', KEYS[1], ours) or refusal
return refusal or ''
"""
)

# KEYS claims · ARGV token, lease ms, digests · returns how many are still ours
RENEW = (
    _COMMON
    + """
local token, lease, fields = ARGV[1], tonumber(ARGV[2]), cut(ARGV[3], DIGEST)
local claims, now, ours, count = read(KEYS[1], fields), milliseconds(), {}, 0
for n, field in ipairs(fields) do
  if claims[n] and string.sub(claims[n], 1, TOKEN) == token then
    local begun = begun_and_end(claims[n])
    ours[#ours + 1] = field
    ours[#ours + 1] = token .. string.format('%.0f:%.0f', begun or now, now + lease)
    count = count + 1
  end
end
if write('HSET', KEYS[1], ours) == nil and count > 0 then redis.call('PEXPIRE', KEYS[1], lease) end
return count
"""
)
