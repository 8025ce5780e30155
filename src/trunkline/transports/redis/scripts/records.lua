-- What nodes keep beside topics. This file stands before the scripts that need it.
-- `deadlines` says when the lease of each node ends, or, below 0, when it was reaped. `records` holds one node's, each as the
-- length of its tag, the tag and the value, under '.' and its key; under '@' the number of the last change, or 'lost' or
-- 'reaped' once that was not the one that the node takes for the last. `tags` counts the records of each tag.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- They outlive the lease, so that somebody can tell who left. No tag may outlive the records that it counts.
local stay = 600000

local function whole(number) return string.format('%d', number) end

local function renew(deadlines, records, tags, node, lease)
  redis.call('ZADD', deadlines, whole(now + lease), node)
  redis.call('PEXPIRE', deadlines, whole(stay + 2 * lease))
  redis.call('PEXPIRE', tags, whole(stay + 2 * lease))
  redis.call('PEXPIRE', records, whole(2 * (stay + 2 * lease)))
end

local function untag(tags, record)
  local length, at = string.match(record, '^(%d+) ()')
  local tag = string.sub(record, at, at + length - 1)
  local left = redis.call('HINCRBY', tags, tag, -1)
  if left <= 0 then redis.call('HDEL', tags, tag) end
  return left
end

-- The answers that a sender may not have got yet, by number.
local function remembered(memory, number)
  local found = redis.call('ZRANGEBYSCORE', memory, number, number)[1]
  return found and cmsgpack.unpack(string.sub(found, #number + 2))
end

local function remember(memory, number, floor, answer)
  redis.call('ZREMRANGEBYSCORE', memory, '-inf', '(' .. floor)
  redis.call('ZADD', memory, number, number .. ' ' .. cmsgpack.pack(answer))
  redis.call('PEXPIRE', memory, 600000)
  return answer
end
