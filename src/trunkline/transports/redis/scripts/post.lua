-- Post frames to a node as one, counting each against its channel. Answers OK, GONE, or FULL and which were refused: 1, 2, 3 …
-- A large frame comes by itself behind this, a single one: then only what is refused is appended here, its void frame, so
-- that nobody takes it.
-- KEYS inbox, alive, depth, last, refused
-- ARGV frame (its header only: a large one), seq, floor, ttl ms, the oldest id that the log is to keep (empty: it is not
-- looked after now), length to cut it to (0: it is not too long), then for each run of frames for one channel: channel,
-- capacity (-1: none), count
local HEADER, VOID = 37, 1 -- bytes of the header; what the first of them has in a void frame
local large = #ARGV[1] == HEADER
local function void()
  local mark = string.byte(ARGV[1])
  return string.char(mark % 2 == VOID and mark or mark + VOID) .. string.sub(ARGV[1], 2, HEADER)
end
local last = redis.call('SET', KEYS[4], ARGV[2], 'KEEPTTL', 'GET')
if not last or ARGV[5] ~= '' then redis.call('PEXPIRE', KEYS[4], ARGV[4]) end
if last and tonumber(last) >= tonumber(ARGV[2]) then
  -- Done before, only the answer was lost.
  redis.call('SET', KEYS[4], last, 'PX', ARGV[4])
  for _, refusal in ipairs(redis.call('LRANGE', KEYS[5], 0, -1)) do
    local seq, places = string.match(refusal, '^(%d+)(.*)$')
    if seq == ARGV[2] then
      if large then redis.call('XADD', KEYS[1], '*', 'd', void()) end
      return 'FULL' .. places
    end
  end
  return 'OK'
end
local alive = redis.call('GET', KEYS[2])
local listens = not alive and redis.call('PUBSUB', 'NUMSUB', KEYS[1])[2] > 0
-- It said good-bye; or it gives no sign of life and does not listen.
if alive == '' or (not alive and not listens) then
  redis.call('DEL', KEYS[4]) -- nothing was done
  if not alive then
    -- Perhaps it is only cut off: then it is told when it is back.
    local missed = 0
    for run = 7, #ARGV, 3 do missed = missed + ARGV[run + 2] end
    redis.call('HINCRBY', KEYS[3], '@missed', missed)
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
    if large then redis.call('XADD', KEYS[1], '*', 'd', void()) end
  end
  return 'GONE'
end
-- Cut off, but its connection has not ended: when that ends it gets as long to come back as one that was heard of just now.
if listens then redis.call('SET', KEYS[2], 'late', 'PX', 8000) end
local frame, answer = ARGV[1], 'OK'
local count, refused = 0, {}
for run = 7, #ARGV, 3 do
  local channel, capacity, many = ARGV[run], tonumber(ARGV[run + 1]), tonumber(ARGV[run + 2])
  local depth = redis.call('HINCRBY', KEYS[3], channel, many)
  if capacity >= 0 and depth > capacity then
    local over = math.min(depth - capacity, many)
    redis.call('HINCRBY', KEYS[3], channel, -over)
    for place = many - over + 1, many do refused[#refused + 1] = count + place end
  elseif depth == many and redis.call('PTTL', KEYS[3]) < 0 then
    -- The owner prolongs it; should it die first, the count must not stay for ever.
    redis.call('PEXPIRE', KEYS[3], ARGV[4])
  end
  count = count + many
end
if #refused > 0 then
  answer = table.concat(refused, ' ')
  local first = redis.call('LINDEX', KEYS[5], 0)
  while first and tonumber(string.match(first, '^%d+')) < tonumber(ARGV[3]) do
    redis.call('LPOP', KEYS[5])
    first = redis.call('LINDEX', KEYS[5], 0)
  end
  redis.call('RPUSH', KEYS[5], ARGV[2] .. ' ' .. answer)
  redis.call('PEXPIRE', KEYS[5], ARGV[4])
  answer = 'FULL ' .. answer
  if #refused == count then
    frame = void()
  else
    -- The same without those: the header, then each frame behind its size.
    local at, out = HEADER + 1, 1
    local kept = {string.sub(frame, 1, HEADER)}
    for place = 1, count do
      local stop = at + 4 + struct.unpack('>I4', frame, at)
      if refused[out] == place then
        out = out + 1
      else
        kept[#kept + 1] = string.sub(frame, at, stop - 1)
      end
      at = stop
    end
    frame = table.concat(kept)
  end
end
if ARGV[5] ~= '' then
  redis.call('XTRIM', KEYS[1], 'MINID', '~', ARGV[5])
  if ARGV[6] ~= '0' then redis.call('XTRIM', KEYS[1], 'MAXLEN', '~', ARGV[6]) end
end
if large and answer == 'OK' then return answer end
redis.call('XADD', KEYS[1], '*', 'd', frame)
-- As with the depth. A log that is new where everything was flushed has no time to live yet.
if (listens or ARGV[5] ~= '') and redis.call('PTTL', KEYS[1]) < 0 then redis.call('PEXPIRE', KEYS[1], ARGV[4]) end
redis.call('PUBLISH', KEYS[1], frame)
return answer
