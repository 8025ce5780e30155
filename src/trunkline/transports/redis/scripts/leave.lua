-- A reader waits no more: put back what it was given and did not hand on, and pass on a wake that it may have had.
-- KEYS frames, deadlines, idle, held by the slot
-- ARGV slot, request, idle member, memory ms, then the deadlines, the last first, then their frames
local number = string.match(redis.call('GETRANGE', KEYS[4], 0, 19), '^%d+')
if not number or tonumber(number) < tonumber(ARGV[2]) then
  local count = (#ARGV - 4) / 2
  for i = 5, 4 + count do
    redis.call('LPUSH', KEYS[1], ARGV[i + count])
    redis.call('LPUSH', KEYS[2], ARGV[i])
    for key = 1, 2 do
      if redis.call('PTTL', KEYS[key]) < 0 then redis.call('PEXPIREAT', KEYS[key], ARGV[i]) end
    end
  end
  redis.call('SET', KEYS[4], ARGV[2] .. ' ', 'PX', ARGV[4])
else
  redis.call('PEXPIRE', KEYS[4], ARGV[4]) -- a write, for who waits for replicas
end
redis.call('SREM', KEYS[3], ARGV[3])
-- Two, as who takes does: a reader that gives back is slow.
for _ = 1, math.min(redis.call('LLEN', KEYS[1]), 2) do wake(KEYS[3]) end
return 'OK'
