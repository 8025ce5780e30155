-- Frames of a queue that are put off: `schedule` says when each token is due, `contents` holds its ttl and its frame. This
-- file stands before the scripts that need it. The first byte of a frame counts how often it was leased, from '+' on.
local function renew(key, ttl)
  if redis.call('PTTL', key) < ttl then redis.call('PEXPIRE', key, math.floor(ttl * 1.25) + 10000) end
end

local function put_off(schedule, contents, token, due, now, ttl, frame)
  redis.call('ZADD', schedule, string.format('%d', due), token)
  redis.call('HSET', contents, token, ttl .. ' ' .. frame)
  renew(schedule, due - now + ttl)
  renew(contents, due - now + ttl)
end

local function to_front(frames, deadlines, frame, now, ttl)
  redis.call('LPUSH', frames, frame)
  redis.call('LPUSH', deadlines, string.format('%d', now + ttl))
  renew(frames, ttl)
  renew(deadlines, ttl)
end

-- Forget a token; answers its ttl and frame.
local function take_out(schedule, contents, token)
  local content = redis.call('HGET', contents, token)
  redis.call('ZREM', schedule, token)
  redis.call('HDEL', contents, token)
  if not content then return nil, nil end
  local ttl, at = string.match(content, '^(%d+) ()')
  return tonumber(ttl), string.sub(content, at)
end

-- Bring what is due to the front of its queue, the longest due first. Answers when the next is due.
local function bring(frames, deadlines, schedule, contents, now)
  local first = redis.call('ZRANGEBYSCORE', schedule, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if not first[2] or tonumber(first[2]) > now then return tonumber(first[2]) end
  local due = redis.call('ZRANGEBYSCORE', schedule, '-inf', now, 'WITHSCORES', 'LIMIT', 0, 64)
  for i = #due - 1, 1, -2 do
    local ttl, frame = take_out(schedule, contents, due[i])
    local left = ttl and tonumber(due[i + 1]) + ttl - now
    if left and left > 0 then to_front(frames, deadlines, frame, now, left) end
  end
  first = redis.call('ZRANGEBYSCORE', schedule, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  return tonumber(first[2])
end

local function wake(idle)
  while true do
    local member = redis.call('SPOP', idle)
    if not member then return end
    local channel, slot = string.match(member, '^(.*) (%S+)$')
    if redis.call('PUBLISH', channel, 'W' .. slot) > 0 then return end
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
