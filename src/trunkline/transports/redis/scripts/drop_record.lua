-- Take a record of a node away. Answers how many others have its tag, -1 if there was none, and whether it was the last.
-- KEYS deadlines, records of the node, tags, memory of what it did
-- ARGV number, floor, number of the change before, node, key
local known = remembered(KEYS[4], ARGV[1])
if known then return known end
local left, last = -1, 0
local record = redis.call('HGET', KEYS[2], '.' .. ARGV[5])
if record then
  redis.call('HDEL', KEYS[2], '.' .. ARGV[5])
  left = untag(KEYS[3], record)
end
local mark = redis.call('HGET', KEYS[2], '@')
if mark then
  if mark == ARGV[3] then mark = ARGV[1] elseif mark ~= 'reaped' then mark = 'lost' end
  redis.call('HSET', KEYS[2], '@', mark)
  if mark == ARGV[1] and redis.call('HLEN', KEYS[2]) == 1 then
    last = 1
    redis.call('ZREM', KEYS[1], ARGV[4])
    redis.call('PEXPIRE', KEYS[2], 120000) -- until the node has heard that it was the last
  end
end
return remember(KEYS[4], ARGV[1], ARGV[2], {left, last})
