-- Answers reads from one snapshot. For each read ARGV has a letter and the arguments of the function in `reads` that has
-- this letter as its name. The answers have the order of the reads. The script makes the keys from the tag of the bucket,
-- which is a part of each of them (see layout.py). In a cluster KEYS has them too, except those of the records of a listing,
-- which only the index knows.

local call = redis.call
local CHUNK = 256

-- What was found, which is always there unless the storage is damaged. Raises an error if it is not.
local function there(found)
  if not found then error({err = 'DAMAGED a record has lost a part'}) end
  return found
end

-- Visits the members of a sorted set in bounded steps. visit(member) returns the size of the value, in bytes.
-- Returns 1 if a limit left something out, otherwise 0. A negative limit means no limit.
local function walk(key, low, high, descending, limit, bytes_max, visit)
  local n, size = 0, 0
  while true do
    local wanted = CHUNK
    if limit >= 0 and limit - n < CHUNK then wanted = limit - n + 1 end
    local members
    if descending then
      members = call('ZREVRANGEBYLEX', key, high, low, 'LIMIT', 0, wanted)
    else
      members = call('ZRANGEBYLEX', key, low, high, 'LIMIT', 0, wanted)
    end
    for _, member in ipairs(members) do
      if n == limit or (n > 0 and bytes_max >= 0 and size >= bytes_max) then return 1 end
      size = size + visit(member)
      n = n + 1
    end
    if #members < wanted then return 0 end
    local last = '(' .. members[#members]
    if descending then high = last else low = last end
  end
end

-- What a record's hash has in these fields, of which the head is the first. A hash without a head has lost a part.
local function fields(key, ...)
  local found = call('HMGET', key, 'h', ...)
  if not found[1] then there(call('EXISTS', key) == 0) end
  return found
end

local reads = {}

-- The head of a record: key.
function reads.h(i, out)
  out[#out + 1] = call('HGET', ARGV[i], 'h')
  return i + 1
end

-- Head and value: key.
function reads.v(i, out)
  out[#out + 1] = fields(ARGV[i], 'v')
  return i + 1
end

-- Head and value, without a value of more than bytes_max bytes: key, bytes_max.
function reads.b(i, out)
  local found = fields(ARGV[i], 'v')
  if found[2] and #found[2] > tonumber(ARGV[i + 1]) then found[2] = false end
  out[#out + 1] = found
  return i + 2
end

-- Head and lanes: key.
function reads.p(i, out)
  out[#out + 1] = fields(ARGV[i], 'l')
  return i + 1
end

-- Head and id of a namespace's record: key.
function reads.i(i, out)
  out[#out + 1] = call('HMGET', ARGV[i], 'h', 'i')
  return i + 1
end

-- Rows: tag, kind:lane:key, order ('s' or 'b'), low, high, floor (0 or 1), descending (0 or 1), limit, bytes_max
-- → {more, sort, value, by, …}. Where there are rows, their record has a head.
function reads.s(i, out)
  local tag, lane, order, low, high = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local descending, limit, bytes_max = ARGV[i + 6] == '1', tonumber(ARGV[i + 7]), tonumber(ARGV[i + 8])
  local ordered, data = tag .. ':' .. order .. ':' .. lane, tag .. ':d:' .. lane
  if ARGV[i + 5] == '1' then
    local below = call('ZREVRANGEBYLEX', ordered, low, '-', 'LIMIT', 0, 1)[1]
    if below then low = '[' .. below end
  end
  local found = {0}
  found[1] = walk(ordered, low, high, descending, limit, bytes_max, function(member)
    local sort = member
    if order == 'b' then sort = there(call('HGET', data, 'b' .. member)) end
    local row = call('HMGET', data, 's' .. sort, 'y' .. sort)
    local n = #found
    found[n + 1], found[n + 2], found[n + 3] = sort, row[1], row[2]
    return #there(row[1])
  end)
  if #found > 1 then
    local kind, key = string.match(lane, '^(%d+):%d+:(.*)$')
    there(call('HEXISTS', tag .. ':h:' .. kind .. ':' .. key, 'h') == 1)
  end
  out[#out + 1] = found
  return i + 9
end

-- Records: tag, kind, low, high, limit, bytes_max, values (0: only heads, 1: heads and values, 2: heads and sizes of values)
-- → {more, key, head, value, …}
function reads.l(i, out)
  local tag, kind, low, high, limit, bytes_max = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local values, found = ARGV[i + 6], {0}
  local heads = tag .. ':h:' .. kind .. ':'
  found[1] = walk(tag .. ':i:' .. kind, low, high, false, tonumber(limit), tonumber(bytes_max), function(key)
    local head, value, size = nil, false, 0
    if values == '1' then
      local both = call('HMGET', heads .. key, 'h', 'v')
      head, value = both[1], both[2]
      size = value and #value or 0
    else
      head = call('HGET', heads .. key, 'h')
      if values == '2' then
        value = call('HSTRLEN', heads .. key, 'v')
        size = value
      end
    end
    -- While a slot moves to another node, the record may move before the index. KEYS has keys only in a cluster.
    if not head and #KEYS > 0 then error({err = 'TRYAGAIN a record is on its way to another node'}) end
    there(head)
    local n = #found
    found[n + 1], found[n + 2], found[n + 3] = key, head, value
    return size
  end)
  out[#out + 1] = found
  return i + 7
end

-- Counts: tag, bound → {records, expired records} of kinds 1 to 3. What has expired lies below the bound.
function reads.c(i, out)
  local tag, found = ARGV[i], {}
  for kind = 1, 3 do
    found[#found + 1] = call('ZCARD', tag .. ':i:' .. kind)
    found[#found + 1] = call('ZLEXCOUNT', tag .. ':x:' .. kind, '-', ARGV[i + 1])
  end
  out[#out + 1] = found
  return i + 2
end

-- Expired records: tag, bound, limit → {the namespace's name, then for kinds 0 to 4: {the next to expire, expired …}}
function reads.x(i, out)
  local tag = ARGV[i]
  local found = {call('HGET', tag .. ':ns', 'n')}
  for kind = 0, 4 do
    local expiring = tag .. ':x:' .. kind
    local members = call('ZRANGEBYLEX', expiring, '-', ARGV[i + 1], 'LIMIT', 0, ARGV[i + 2])
    table.insert(members, 1, call('ZRANGE', expiring, 0, 0)[1] or false)
    found[#found + 1] = members
  end
  out[#out + 1] = found
  return i + 3
end

local out, i = {}, 1
while i <= #ARGV do
  i = reads[ARGV[i]](i + 1, out)
end
return out
