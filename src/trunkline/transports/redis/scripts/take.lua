-- Take the oldest live frames; with fewer than wanted, and no more than the reader does in a moment, put it on the idle list.
-- Answers deadlines and frames in turn, and then, for an idle reader, in how many ms a frame is due, if one is; for one that is
-- to come back for the rest of the queue, or to pass it on, 0.
-- What a slot was given is remembered until its next request, so a request repeated after a lost answer gets the same
-- frames, and one that comes late by another road (its number is old) gets nothing.
-- KEYS frames, deadlines, idle, held by the slot, schedule, contents
-- ARGV slot, request, idle member, memory ms, frames wanted, frames that the reader does in a moment
local held = redis.call('GETRANGE', KEYS[4], 0, 19)
if held ~= '' then
  local number, at = string.match(held, '^(%d+) ()')
  if tonumber(number) > tonumber(ARGV[2]) then return {} end
  if number == ARGV[2] then
    redis.call('PEXPIRE', KEYS[4], ARGV[4]) -- a write, for who waits for replicas
    held = string.sub(redis.call('GET', KEYS[4]), at)
    if redis.call('LLEN', KEYS[1]) > 0 then wake(KEYS[3]) end
    return held ~= '' and cmsgpack.unpack(held) or {}
  end
end
local due = bring(KEYS[1], KEYS[2], KEYS[5], KEYS[6], now)
local given, frames = {}, nil
repeat
  frames = redis.call('LPOP', KEYS[1], ARGV[5])
  if frames then
    for place, deadline in ipairs(redis.call('LPOP', KEYS[2], ARGV[5])) do
      if tonumber(deadline) > now then
        given[#given + 1] = deadline
        given[#given + 1] = frames[place]
      end
    end
  end
until not frames or #given > 0
redis.call('SET', KEYS[4], ARGV[2] .. ' ' .. (#given > 0 and cmsgpack.pack(given) or ''), 'PX', ARGV[4])
local count, swift = #given / 2, tonumber(ARGV[6])
if count == 0 or count < tonumber(ARGV[5]) and count <= swift then
  redis.call('SADD', KEYS[3], ARGV[3])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  if due then given[#given + 1] = math.max(due - now, 1) end
  return given
end
redis.call('SREM', KEYS[3], ARGV[3])
-- Whoever takes passes the wake on, to two while there is more than itself does in a moment: a push wakes one reader, however
-- much it brings.
local left = redis.call('LLEN', KEYS[1])
if left > 0 and left <= swift then
  given[#given + 1] = 0
  return given
end
for _ = 1, math.min(left, 2) do wake(KEYS[3]) end
return given
