-- Keep a record of a node. Answers how many have its tag, 0 if it was there already.
-- KEYS deadlines, records of the node, tags, memory of what it did
-- ARGV number, floor, number of the change before, node, lease ms, key, tag, value
local known = remembered(KEYS[4], ARGV[1])
if known then return known end
local deadline = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[4]) or 0)
if deadline == 0 and ARGV[3] == '' then redis.call('DEL', KEYS[2]) end -- left from a time that nobody remembers
local mark = deadline < 0 and 'reaped' or redis.call('HGET', KEYS[2], '@') or ''
if mark == ARGV[3] then mark = ARGV[1] elseif mark ~= 'reaped' then mark = 'lost' end
local count = 0
if redis.call('HEXISTS', KEYS[2], '.' .. ARGV[6]) == 0 then count = redis.call('HINCRBY', KEYS[3], ARGV[7], 1) end
redis.call('HSET', KEYS[2], '.' .. ARGV[6], #ARGV[7] .. ' ' .. ARGV[7] .. ARGV[8], '@', mark)
renew(KEYS[1], KEYS[2], KEYS[3], ARGV[4], tonumber(ARGV[5]))
return remember(KEYS[4], ARGV[1], ARGV[2], count)
