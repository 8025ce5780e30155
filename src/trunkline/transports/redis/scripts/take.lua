-- Take the oldest live frame; without one, put the reader on the idle list and answer nil.
-- What a slot was given stays in its hand until its next request, so a request repeated after a lost answer gets the
-- same frame, and one that comes late by another road (its number is old) gets nothing.
-- KEYS frames, deadlines, idle, held
-- ARGV slot, request, idle member, memory ms
local held = redis.call('HGET', KEYS[4], ARGV[1])
if held then
  local number, deadline, at = string.match(held, '^(%d+) (%d*) ()')
  if tonumber(number) > tonumber(ARGV[2]) then return false end
  if number == ARGV[2] then return deadline ~= '' and string.sub(held, at) or false end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local frame, deadline
repeat
  frame = redis.call('LPOP', KEYS[1])
  deadline = redis.call('LPOP', KEYS[2])
until not frame or tonumber(deadline) > now
redis.call('HSET', KEYS[4], ARGV[1], ARGV[2] .. ' ' .. (frame and deadline or '') .. ' ' .. (frame or ''))
redis.call('PEXPIRE', KEYS[4], ARGV[4])
if frame then
  redis.call('SREM', KEYS[3], ARGV[3])
  return frame
end
redis.call('SADD', KEYS[3], ARGV[3])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
return false
