"""The scripts that run on the Redis server; the server runs each without interruption.

Their keys are, in this order, `KEYS`:

    lock      text      member and number of the take that has the lock; expires by itself
    facts     hash      marker (random), version (counts publications), at (time of the last take),
                        pruned
    rows      hash      by a row's key: its writer, its series, its job and its task, each 16
                        characters and a space, and then the row as text
    versions  sorted    a row's key by the version in which it was written
    ends      sorted    a row's key by the time when it is dropped; absent if not dropped by time
    index     sorted    "<job or task> <row's key>", all with one score, in alphabetical order
    seen      sorted    a living member by the time of its last call
    takes     hash      by member, the number of its last take
    gone      sorted    a member that left or died by the version in which that was recorded

All times are microseconds of the server's clock. All values are text or whole numbers.
"""

from __future__ import annotations

from typing import Final

KEYS: Final = ("lock", "facts", "rows", "versions", "ends", "index", "seen", "takes", "gone")

# Lua's doubles hold microseconds exactly, but Lua's own conversion to text is not exact.
_COMMON: Final = """
local lock, facts, rows, versions, ends, index, seen, takes, gone = unpack(KEYS)
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function whole(number) return string.format('%.0f', number) end

local function unindex(field)
  local old = redis.call('HGET', rows, field)
  if not old then return end
  for _, at in ipairs({35, 52}) do
    redis.call('ZREM', index, string.sub(old, at, at + 15) .. ' ' .. field)
  end
end

local function drop(field)
  unindex(field)
  redis.call('HDEL', rows, field)
  redis.call('ZREM', versions, field)
  redis.call('ZREM', ends, field)
end

local function leave(member, kept)
  redis.call('ZREM', seen, member)
  redis.call('HDEL', takes, member)
  drop('member ' .. member)
  local prefix = 'request ' .. member .. ' '
  for _, field in ipairs(redis.call('HKEYS', rows)) do
    if string.sub(field, 1, #prefix) == prefix and not redis.call('ZSCORE', ends, field) then
      redis.call('ZADD', ends, whole(now + kept), field)
    end
  end
  redis.call('ZADD', gone, redis.call('HINCRBY', facts, 'version', 1), member)
end

local function expire(kept)
  for i = 2, #KEYS do redis.call('PEXPIRE', KEYS[i], whole(kept / 1000)) end
end
"""

# Returns {0, now} if another member has the lock or the caller no longer waits, otherwise
# {1, now, afresh, marker, version, gone, fields and bodies in turn}.
TAKE: Final = (
    _COMMON
    + """
local me, take, confirmed = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local marker, since, patience = ARGV[4], ARGV[5], tonumber(ARGV[6])
local unused, wiped = ARGV[7], ARGV[8]
local life, dead_after, step = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
local kept, kept_when_gone = tonumber(ARGV[12]), tonumber(ARGV[13])

local holder = redis.call('GET', lock)
if now > patience or (holder and string.sub(holder, 1, #me) ~= me) then return {0, now} end
-- A call whose caller has given up may arrive after the next one.
local last = tonumber(redis.call('HGET', takes, me) or '-1')
if last >= take then return {0, now} end

local facts_now = redis.call('HMGET', facts, 'marker', 'at')
local current, at = facts_now[1], tonumber(facts_now[2] or whole(now))
if not current or current == wiped or now < at - step then
  redis.call('DEL', rows, versions, ends, index, seen, takes, gone)
  current, last = unused, -1
end
redis.call('HSET', facts, 'marker', current, 'at', whole(now))
redis.call('SET', lock, me .. ' ' .. ARGV[2], 'PX', life)

local silent = redis.call('ZRANGEBYSCORE', seen, '-inf', '(' .. whole(now - dead_after))
for _, member in ipairs(silent) do
  if member ~= me then leave(member, kept_when_gone) end
end
redis.call('ZREM', gone, me)
redis.call('ZADD', seen, whole(now), me)
redis.call('HSET', takes, me, take)
if current == unused then expire(kept) end

local version = redis.call('HGET', facts, 'version') or '0'
local afresh = 0
if last < confirmed or current ~= marker or tonumber(since) > tonumber(version) then
  afresh, since = 1, '0'
end
local found = {}
local fields = redis.call('ZRANGEBYSCORE', versions, '(' .. since, '+inf')
for first = 1, #fields, 1000 do
  local some = {}
  for i = first, math.min(first + 999, #fields) do some[#some + 1] = fields[i] end
  for i, body in ipairs(redis.call('HMGET', rows, unpack(some))) do
    if body then
      found[#found + 1] = some[i]
      found[#found + 1] = body
    end
  end
end
local left = redis.call('ZRANGEBYSCORE', gone, '(' .. since, '+inf')
return {1, now, afresh, current, version, left, found}
"""
)

# Six fixed arguments, then four for each row: how, field, body, end. Returns the version, or -1 if
# the lock was lost. How: "=" writes the row, "+" writes it only if there is none; "seen" and "gone"
# record a member (named in place of the field) that the ledger does not know.
PUBLISH: Final = (
    _COMMON
    + """
local me, most, pruned_every, most_gone, kept =
  ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('GET', lock) ~= ARGV[1] then return -1 end

local version = redis.call('HGET', facts, 'version') or '0'
if #ARGV > 6 then version = redis.call('HINCRBY', facts, 'version', 1) end
for i = 7, #ARGV, 4 do
  local how, field, body, last = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if how == 'seen' or how == 'gone' then
    if not redis.call('ZSCORE', seen, field) and not redis.call('ZSCORE', gone, field) then
      if how == 'seen' then redis.call('ZADD', seen, whole(now), field)
      else redis.call('ZADD', gone, version, field) end
    end
  elseif how == '=' or redis.call('HEXISTS', rows, field) == 0 then
    unindex(field)
    redis.call('HSET', rows, field, body)
    redis.call('ZADD', versions, version, field)
    redis.call('ZREM', ends, field)
    if last ~= '' then redis.call('ZADD', ends, last, field) end
    for _, at in ipairs({35, 52}) do
      local name = string.sub(body, at, at + 15)
      if string.sub(name, 1, 1) ~= '-' then redis.call('ZADD', index, 0, name .. ' ' .. field) end
    end
  end
end
redis.call('ZADD', seen, whole(now), me)

if now - tonumber(redis.call('HGET', facts, 'pruned') or '0') >= pruned_every then
  redis.call('HSET', facts, 'pruned', whole(now))
  for _, field in ipairs(redis.call('ZRANGEBYSCORE', ends, '-inf', '(' .. whole(now))) do
    drop(field)
  end
  redis.call('ZREMRANGEBYRANK', gone, 0, -most_gone - 1)
  local counts = {}
  -- The newest first.
  for _, field in ipairs(redis.call('ZREVRANGE', versions, 0, -1)) do
    if string.sub(field, 1, 9) == 'duration ' then
      local name = string.sub(redis.call('HGET', rows, field) or '', 18, 33)
      counts[name] = (counts[name] or 0) + 1
      if counts[name] > most then drop(field) end
    end
  end
end
expire(kept)
redis.call('DEL', lock)
return tonumber(version)
"""
)

# Unlocks the ledger; with a second and a third argument the member also leaves it.
LEAVE: Final = (
    _COMMON
    + """
local me, kept_when_gone, kept = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local holder = redis.call('GET', lock)
if holder and string.sub(holder, 1, #me) == me then redis.call('DEL', lock) end
if kept and redis.call('ZSCORE', seen, me) then
  leave(me, kept_when_gone)
  expire(kept)
end
"""
)
