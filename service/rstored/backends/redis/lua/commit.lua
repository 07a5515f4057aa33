-- Carries out updates one after the other, each completely or not at all. For each update ARGV has
--   the number of the arguments that follow for it,
--   the number of its checks, and for each check a record's key and the version that the record must have ('' if the record
--   must not exist),
--   the number of rows that claim a `by`, and for each such row the key of the lane's data, the `by` and the `sort`,
--   its writes: for each a letter and the arguments of the function in `writes` that has this letter as its name.
-- Returns for each update 1 (done), 0 (a check failed, and nothing was done) or the text of an error.
-- If the user may not run one of the commands, the script fails before it does anything. Otherwise Redis would refuse that
-- command in the middle of an update, and the writes before it would stay. (Redis 6.2 cannot be asked beforehand.)
-- The first 8 bytes of a head are its version. The next 8 are its expiry, or zeros if it never expires.

local call = redis.call
local NEVER = string.rep('\0', 8)
local COMMANDS = {'HGET', 'HSET', 'HDEL', 'ZADD', 'ZREM', 'ZRANGEBYLEX', 'ZSCORE', 'SADD', 'SREM', 'UNLINK', 'TYPE'}

-- The current heads that this script has read or written, by key. False stands for a record that does not exist.
local heads = {}

local function add_expiry(tag, kind, key, head)
  local expires = string.sub(head, 9, 16)
  if expires ~= NEVER then call('ZADD', tag .. ':x:' .. kind, 0, expires .. key) end
end

local function drop_expiry(tag, kind, key, head)
  local expires = string.sub(head, 9, 16)
  if expires ~= NEVER then call('ZREM', tag .. ':x:' .. kind, expires .. key) end
end

local function drop_row(tag, lane, sort)
  local data = tag .. ':d:' .. lane
  local by = call('HGET', data, 'y' .. sort)
  if by then
    call('HDEL', data, 's' .. sort, 'y' .. sort, 'b' .. by)
    call('ZREM', tag .. ':b:' .. lane, by)
  else
    call('HDEL', data, 's' .. sort)
  end
  call('ZREM', tag .. ':s:' .. lane, sort)
end

for _, command in ipairs(redis.acl_check_cmd and COMMANDS or {}) do
  if not redis.acl_check_cmd(command) then return redis.error_reply('NOPERM the user may not run ' .. command) end
end

-- The types of the keys that this script has checked. A key that did not exist has the type that it is about to get.
local kinds = {}

-- Raises an error if a key exists and has another type. Redis does not undo the writes of a script that fails, so every
-- key of an update is checked before its first write.
local function must_be(kind, key)
  local found = kinds[key] or call('TYPE', key).ok
  if found ~= kind and found ~= 'none' then error({err = 'WRONGTYPE a key of the store is not a ' .. kind}) end
  kinds[key] = kind
end

local function must_be_lane(tag, lane)
  must_be('zset', tag .. ':s:' .. lane)
  must_be('zset', tag .. ':b:' .. lane)
  must_be('hash', tag .. ':d:' .. lane)
end

-- A record that is in the index of its kind and has no head has lost a part. If a new head took its place, the rows that
-- were left would belong to it.
local function must_be_record(i, expiring)
  local index = ARGV[i] .. ':i:' .. ARGV[i + 1]
  must_be('zset', index)
  local head = heads[ARGV[i] .. ':h:' .. ARGV[i + 1] .. ':' .. ARGV[i + 2]]
  if head == false and call('ZSCORE', index, ARGV[i + 2]) then error({err = 'DAMAGED a record has lost a part'}) end
  if ARGV[expiring] == '1' then must_be('zset', ARGV[i] .. ':x:' .. ARGV[i + 1]) end
end

-- For the letter of each write: how many arguments it has, and the function that checks the types of the keys to which it
-- writes.
local looks = {
  h = {6, function(i) must_be_record(i, i + 5) end},
  D = {4, function(i) must_be_record(i, i + 3) end},
  r = {6, function(i) must_be_lane(ARGV[i], ARGV[i + 1]) end},
  d = {3, function(i) must_be_lane(ARGV[i], ARGV[i + 1]) end},
  R = {4, function(i) must_be_lane(ARGV[i], ARGV[i + 1]) end},
  t = {2, function(i) must_be('hash', ARGV[i]) end},
  f = {3, function(i) must_be('hash', ARGV[i]) end},
  g = {2, function(i) must_be('hash', ARGV[i]) end},
  u = {1, function() end},
  z = {3, function(i) must_be('zset', ARGV[i]) end},
  Z = {2, function(i) must_be('zset', ARGV[i]) end},
  a = {2, function(i) must_be('set', ARGV[i]) end},
  A = {2, function(i) must_be('set', ARGV[i]) end},
}

local writes = {}

-- Puts a head: tag, kind, key, head, value, whether this head or the one before it expires (0 or 1).
function writes.h(i)
  local tag, kind, key, head, value = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local expiring = ARGV[i + 5] == '1'
  local record = tag .. ':h:' .. kind .. ':' .. key
  local old = heads[record]
  if value ~= '' then
    call('HSET', record, 'h', head, 'v', value)
  else
    call('HSET', record, 'h', head)
    if old then call('HDEL', record, 'v') end
  end
  if not old then call('ZADD', tag .. ':i:' .. kind, 0, key) end
  if expiring then
    if old then drop_expiry(tag, kind, key, old) end
    add_expiry(tag, kind, key, head)
  end
  heads[record] = head
end

-- Gives a record another version: the record's key, the new head.
function writes.t(i)
  call('HSET', ARGV[i], 'h', ARGV[i + 1])
  heads[ARGV[i]] = ARGV[i + 1]
end

-- Deletes a record, but not its lanes: tag, kind, key, whether the record expires (0 or 1).
function writes.D(i)
  local tag, kind, key = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = tag .. ':h:' .. kind .. ':' .. key
  call('UNLINK', record)
  call('ZREM', tag .. ':i:' .. kind, key)
  if ARGV[i + 3] == '1' then drop_expiry(tag, kind, key, heads[record]) end
  heads[record] = false
end

-- Puts a row: tag, kind:lane:key, sort, value, whether it has a `by` (0 or 1), the `by`.
function writes.r(i)
  local tag, lane, sort, value, by = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 5]
  local data = tag .. ':d:' .. lane
  local old_by = call('HGET', data, 'y' .. sort)
  if old_by then
    call('HDEL', data, 'y' .. sort, 'b' .. old_by)
    call('ZREM', tag .. ':b:' .. lane, old_by)
  end
  if ARGV[i + 4] == '1' then
    call('HSET', data, 's' .. sort, value, 'y' .. sort, by, 'b' .. by, sort)
    call('ZADD', tag .. ':b:' .. lane, 0, by)
  else
    call('HSET', data, 's' .. sort, value)
  end
  call('ZADD', tag .. ':s:' .. lane, 0, sort)
end

-- Deletes a row: tag, kind:lane:key, sort.
function writes.d(i)
  drop_row(ARGV[i], ARGV[i + 1], ARGV[i + 2])
end

-- Deletes rows: tag, kind:lane:key, the lowest and the highest sort, as ZRANGEBYLEX takes them.
function writes.R(i)
  local tag, lane, low, high = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if low == '-' and high == '+' then
    call('UNLINK', tag .. ':s:' .. lane, tag .. ':b:' .. lane, tag .. ':d:' .. lane)
  else
    for _, sort in ipairs(call('ZRANGEBYLEX', tag .. ':s:' .. lane, low, high)) do drop_row(tag, lane, sort) end
  end
end

-- Sets a field of a hash: key, field, value.
function writes.f(i)
  call('HSET', ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if ARGV[i + 1] == 'h' then heads[ARGV[i]] = ARGV[i + 2] end
end

-- Replaces a bucket's copy of its namespace's head by a newer one. A bucket without a copy stays without one: key, head.
function writes.g(i)
  local old = call('HGET', ARGV[i], 'h')
  if old and struct.unpack('>I8', old) < struct.unpack('>I8', ARGV[i + 1]) then
    call('HSET', ARGV[i], 'h', ARGV[i + 1])
    heads[ARGV[i]] = nil
  end
end

-- Deletes a key: key.
function writes.u(i)
  call('UNLINK', ARGV[i])
  heads[ARGV[i]] = nil
end

-- Puts a member into a sorted set, or lowers its score. A lower score stays: key, score, member.
function writes.z(i)
  call('ZADD', ARGV[i], 'LT', ARGV[i + 1], ARGV[i + 2])
end

-- Removes a member from a sorted set: key, member.
function writes.Z(i)
  call('ZREM', ARGV[i], ARGV[i + 1])
end

-- Adds a member to a set: key, member.
function writes.a(i)
  call('SADD', ARGV[i], ARGV[i + 1])
end

-- Removes a member from a set: key, member.
function writes.A(i)
  call('SREM', ARGV[i], ARGV[i + 1])
end

-- Carries out the update whose arguments are ARGV[i] to ARGV[stop]. Returns 1 if it is done, 0 if a check failed.
local function carry_out(i, stop)
  local ok = true
  local checks = tonumber(ARGV[i])
  i = i + 1
  for _ = 1, checks do
    local head = heads[ARGV[i]]
    if head == nil then
      head = call('HGET', ARGV[i], 'h')
      heads[ARGV[i]] = head
    end
    ok = ok and string.sub(head or '', 1, 8) == ARGV[i + 1]
    i = i + 2
  end
  if not ok then return 0 end
  local claims = tonumber(ARGV[i])
  i = i + 1
  for _ = 1, claims do
    local owner = call('HGET', ARGV[i], 'b' .. ARGV[i + 1])
    if owner and owner ~= ARGV[i + 2] then error({err = 'ROWS two rows of a lane have the same by'}) end
    i = i + 3
  end
  local first = i
  while i <= stop do
    local look = looks[ARGV[i]]
    look[2](i + 1)
    i = i + 1 + look[1]
  end
  i = first
  while i <= stop do
    writes[ARGV[i]](i + 1)
    i = i + 1 + looks[ARGV[i]][1]
  end
  return 1
end

local out, i = {}, 1
while i <= #ARGV do
  local stop = i + tonumber(ARGV[i])
  local done, status = pcall(carry_out, i + 1, stop)
  if not done then
    status = type(status) == 'table' and status.err or tostring(status)
    heads, kinds = {}, {}
  end
  out[#out + 1] = status
  i = stop + 1
end
return out
