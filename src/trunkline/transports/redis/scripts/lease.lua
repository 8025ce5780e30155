-- Take the oldest live frame and put it off for a while; without one, put the reader on the idle list. Answers the frame, or
-- in how many ms one is due (0: none is).
-- KEYS frames, deadlines, idle, schedule, contents
-- ARGV token, idle member, memory ms, lease ms, ttl ms
local content = redis.call('HGET', KEYS[5], ARGV[1])
if content then -- asked before, only the answer was lost
  redis.call('HSET', KEYS[5], ARGV[1], content) -- a write, for who waits for replicas
  return string.sub(content, string.match(content, '^%d+ ()'))
end
local due = bring(KEYS[1], KEYS[2], KEYS[4], KEYS[5], now)
local frame, deadline
repeat
  frame = redis.call('LPOP', KEYS[1])
  deadline = redis.call('LPOP', KEYS[2])
until not frame or tonumber(deadline) > now
if not frame then
  redis.call('SADD', KEYS[3], ARGV[2])
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
  return due and math.max(due - now, 1) or 0
end
frame = string.char(math.min(string.byte(frame) + 1, 255)) .. string.sub(frame, 2)
put_off(KEYS[4], KEYS[5], ARGV[1], now + tonumber(ARGV[4]), now, tonumber(ARGV[5]), frame)
redis.call('SREM', KEYS[3], ARGV[2])
for _ = 1, math.min(redis.call('LLEN', KEYS[1]), 2) do wake(KEYS[3]) end
return frame
