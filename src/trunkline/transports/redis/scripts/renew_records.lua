-- Renew a node's lease. Answers 0; 1 if what it kept is lost, or not sure, and then none of it is left; 2 if some was reaped;
-- and 4 more if the lease of another node has ended.
-- KEYS deadlines, records of the node, tags
-- ARGV number of the last change, node, lease ms
local deadline = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 0)
local mark = redis.call('HGET', KEYS[2], '@')
local answer = 0
if deadline < 0 or (deadline > 0 and mark == 'reaped') then
  answer = 2
elseif deadline == 0 or mark ~= ARGV[1] then
  answer = 1
  if deadline > 0 then
    for place, record in ipairs(redis.call('HGETALL', KEYS[2])) do
      if place % 2 == 0 and string.find(record, ' ', 1, true) then untag(KEYS[3], record) end
    end
  end
  redis.call('DEL', KEYS[2])
  redis.call('ZREM', KEYS[1], ARGV[2])
end
if deadline > 0 and answer ~= 1 then renew(KEYS[1], KEYS[2], KEYS[3], ARGV[2], tonumber(ARGV[3])) end
if #redis.call('ZRANGEBYSCORE', KEYS[1], 1, whole(now), 'LIMIT', 0, 1) > 0 then answer = answer + 4 end
return answer
