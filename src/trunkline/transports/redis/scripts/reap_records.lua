-- Take away some of what a node left behind, if its lease has ended. Answers key, record, how many have its tag then, …
-- KEYS deadlines, records of that node, tags, memory of what the sender did
-- ARGV number, floor, that node, how many, roughly
local known = remembered(KEYS[4], ARGV[1])
if known then return known end
local deadline = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[3]) or 0)
if deadline <= 0 or deadline > now then return {} end
local answer, cursor = {}, '0'
repeat
  local found = redis.call('HSCAN', KEYS[2], cursor, 'COUNT', ARGV[4])
  cursor = found[1]
  for place = 1, #found[2], 2 do
    local key, record = found[2][place], found[2][place + 1]
    -- A key that the server shows twice is gone by then.
    if key ~= '@' and redis.call('HDEL', KEYS[2], key) == 1 then
      answer[#answer + 1] = string.sub(key, 2)
      answer[#answer + 1] = record
      answer[#answer + 1] = untag(KEYS[3], record)
    end
  end
until cursor == '0' or #answer >= 3 * tonumber(ARGV[4])
if redis.call('HLEN', KEYS[2]) <= 1 then
  redis.call('DEL', KEYS[2])
  redis.call('ZADD', KEYS[1], whole(-now), ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '(' .. whole(86400000 - now), -1) -- who has not come back for a day
else
  redis.call('HSET', KEYS[2], '@', 'reaped')
end
return remember(KEYS[4], ARGV[1], ARGV[2], answer)
