-- Erases at most ARGV[2] records of a bucket whose namespace was deleted. When no record is left, it erases the bucket's own
-- keys. ARGV[1] is the bucket's tag. Returns how many records and keys of the bucket it erased, and 0 if nothing was left.

local call = redis.call
local tag, left = ARGV[1], tonumber(ARGV[2])
local erased = call('UNLINK', tag .. ':ns')
for kind = 1, 4 do
  local index = tag .. ':i:' .. kind
  local keys = call('ZRANGE', index, 0, left - 1)
  for _, key in ipairs(keys) do
    local record = tag .. ':h:' .. kind .. ':' .. key
    for number in string.gmatch(call('HGET', record, 'l') or '', '%d+') do
      local lane = kind .. ':' .. number .. ':' .. key
      call('UNLINK', tag .. ':s:' .. lane, tag .. ':b:' .. lane, tag .. ':d:' .. lane)
    end
    call('UNLINK', record)
  end
  if #keys > 0 then call('ZREMRANGEBYRANK', index, 0, #keys - 1) end
  erased = erased + #keys
  left = left - #keys
  if left <= 0 then return erased end
  erased = erased + call('UNLINK', tag .. ':x:' .. kind)
end
return erased
