"use strict";
// One window of the chat. Everything that came from elsewhere is inserted with textContent.

const $ = (id) => document.getElementById(id);
const here = new URL(location.href);
const NAMES = ["Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Hedy", "Joan", "Katherine", "Ken", "Lynn", "Margaret"];
const LINES = 200; // kept per room
const HUES = [212, 150, 30, 340, 180, 260];
const WORKER_HUE = 285;

const rooms = new Map(); // name -> lines
const mine = new Set(); // the ids this window had, one per connection
const parts = new Map(); // "server 1" or "worker" -> its last pulse
const who = new Set(); // the people in the room
const sent = new Map(); // ref of a message -> when it was sent
const positions = new Map(); // room -> where this window stands in it
let name = recall("name") || NAMES[Math.floor(Math.random() * NAMES.length)];
let room = here.searchParams.get("room")?.trim().slice(0, 60) || "Lobby";
let avoid = Number(here.searchParams.get("not")) || 0; // the server another window has
let layer = "…"; // its kind, as the first server told
let socket = null, hello = null, joined = false, attempts = 0, detours = 0, ref = 0, roundTrip = null;
let atEnd = true; // the log shows its last line
let timer = 0, pictureTimer = 0, troubleTimer = 0, draftTimer = 0, drafting = 0;

function recall(key) {
  try { return sessionStorage.getItem(key); } catch { return null; } // storage may be blocked: then a new name it is
}
function remember(key, value) {
  try { sessionStorage.setItem(key, value); } catch { /* as above */ }
}
function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
const hueOf = (server) => HUES[(server - 1) % HUES.length];
function label(text, hue) {
  const made = element("span", "label", text);
  made.style.setProperty("--h", hue);
  return made;
}

// The connection

function connect() {
  clearTimeout(timer);
  const scheme = location.protocol === "https:" ? "wss:" : "ws:";
  const opened = (socket = new WebSocket(`${scheme}//${location.host}/chat`));
  opened.binaryType = "arraybuffer";
  opened.onmessage = (event) => { if (opened === socket) take(JSON.parse(event.data)); };
  opened.onclose = () => { if (opened === socket) lost(); };
  showState();
}
function lost() {
  const was = hello;
  hello = socket = null;
  donePicture();
  const delay = Math.min(5000, 200 * 2 ** attempts++) * (0.75 + Math.random() / 2);
  timer = setTimeout(connect, delay);
  if (was && joined) note(room, `The connection to server ${was.server} (pid ${was.pid}) was lost. What is said meanwhile is fetched when it is back.`);
  showState(`reconnecting in ${(delay / 1000).toFixed(1)} s`);
}
function ask(content) {
  if (!hello) return complain("There is no connection just now; it comes back by itself.");
  socket.send(content instanceof ArrayBuffer ? content : JSON.stringify(content));
  return true;
}
function join() {
  if (!hello) return;
  socket.send(JSON.stringify({ do: "join", room, name, back: joined, since: positions.get(room) }));
  joined = true;
}

function tellDraft() {
  drafting = 0;
  if (hello) socket.send(JSON.stringify({ do: "draft", text: $("text").value }));
}

const taking = {
  hello(line) {
    if (line.server === avoid && detours++ < 25) { // connections are spread at random: try again for another server
      socket.onclose = null;
      socket.close();
      return connect();
    }
    avoid = attempts = 0;
    hello = line;
    layer = line.layer;
    $("trouble").hidden = true;
    mine.add(line.id);
    parts.set(`server ${line.server}`, { windows: 1, ...parts.get(`server ${line.server}`), ...line, number: line.server, at: Date.now() });
    showState();
    showParts();
    join();
  },
  pulse(line) {
    parts.set(line.part === "worker" ? "worker" : `server ${line.number}`, { ...line, at: Date.now() });
    showParts();
    showRooms();
  },
  who(line) {
    if (line.room !== room) return;
    who.clear();
    line.names.forEach((each) => who.add(each));
    showWho();
  },
  came(line) { if (line.room === room) showWho(who.add(line.who)); },
  gone(line) { if (line.room === room) showWho(who.delete(line.who)); },
  here(line) {
    positions.set(line.room, line.position);
    if (line.lost) note(line.room, "More was said meanwhile than the room remembers.");
  },
  draft(line) {
    $("draft").hidden = !line.text;
    $("draft").firstElementChild.textContent = line.name;
    $("draft").lastElementChild.textContent = line.text;
    clearTimeout(draftTimer);
    draftTimer = setTimeout(() => { $("draft").hidden = true; }, 5000);
  },
  error(line) { donePicture(); complain(line.text); },
  announcement(line) {
    for (const each of rooms.keys()) add(each, line);
    light("layer");
  },
};
function take(line) {
  if (Object.hasOwn(taking, line.is)) return taking[line.is](line);
  if (line.position) positions.set(line.room, line.position);
  if (mine.has(line.by)) {
    if (line.is === "picture") donePicture();
    if (sent.has(line.ref)) {
      roundTrip = performance.now() - sent.get(line.ref);
      sent.delete(line.ref);
      showParts();
    }
  }
  light(`server ${line.server}`, "layer", line.worker && "worker");
  add(line.room, line);
}

// The log

function add(where, line) {
  const lines = rooms.get(where) ?? [];
  rooms.set(where, lines);
  line.at ??= new Date();
  lines.push(line);
  if (lines.length > LINES) lines.shift();
  if (where === room) append(line);
}
function note(where, text) { add(where, { is: "note", text }); }
function append(line) {
  const log = $("log");
  log.append(drawn(line));
  while (log.children.length > LINES) log.firstChild.remove();
  if (atEnd || mine.has(line.by)) log.scrollTop = log.scrollHeight;
}
function drawn(line) {
  if (line.is === "announcement") {
    const item = element("div", "announcement", line.text);
    item.prepend(element("b", "", `Announcement · a script, pid ${line.pid}`));
    return item;
  }
  if (line.is !== "message" && line.is !== "picture") return drawnNote(line);
  const item = element("div", line.is === "picture" ? "message picture" : "message");
  if (mine.has(line.by)) item.classList.add("mine");
  const face = element("span", "face", [...line.name][0].toUpperCase());
  face.setAttribute("aria-hidden", "true");
  face.style.setProperty("--h", [...line.name].reduce((sum, c) => (sum * 31 + c.codePointAt(0)) % 360, 7));
  const head = element("div", "head");
  head.append(element("bdi", "", line.name), label(`server ${line.server} · pid ${line.pid}`, hueOf(line.server)));
  if (line.worker) head.append(label(`worker · pid ${line.worker} · ${line.ms} ms`, WORKER_HUE));
  head.append(element("time", "", line.at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })));
  const body = element("div", "body", line.text ?? "");
  if (line.is === "picture" && /^data:image\/(png|jpeg);base64,/.test(line.image)) {
    const image = element("img");
    Object.assign(image, { src: line.image, width: line.width, height: line.height, alt: `Thumbnail of a picture from ${line.name}` });
    body.append(image);
  }
  item.append(face, head, body);
  return item;
}
function drawnNote(line) {
  const texts = {
    note: () => line.text,
    joined: () => `${line.name} ${line.back ? "is back" : "joined"}`,
    left: () => `${line.name} left`,
    renamed: () => `${line.before} is now ${line.name}`,
  };
  const item = element("div", "note", texts[line.is]?.() ?? "");
  if (line.server) item.append(" ", label(`server ${line.server} · pid ${line.pid}`, hueOf(line.server)));
  return item;
}

// Rooms and processes

function enter(wanted) {
  wanted = wanted.trim().slice(0, 60);
  if (!wanted || wanted === room) return;
  room = wanted;
  if (!rooms.has(room)) rooms.set(room, []);
  joined = false;
  who.clear();
  showWho();
  showRoom();
  join();
}
function showRoom() {
  $("room").textContent = room;
  document.title = `${room} · Trunkline demo`;
  $("log").replaceChildren(...rooms.get(room).map(drawn));
  $("log").scrollTop = $("log").scrollHeight;
  showRooms();
  showSecond();
}
function showWho() {
  $("who").replaceChildren(...[...who].slice(0, 100).map((each) => { const item = element("li"); item.append(element("bdi", "", each)); return item; }));
}
function showRooms() {
  const counts = new Map();
  for (const part of parts.values()) {
    if (Date.now() - part.at > 3000) continue;
    for (const [each, people] of Object.entries(part.rooms ?? {})) counts.set(each, (counts.get(each) ?? 0) + people);
  }
  for (const each of counts.keys()) if (!rooms.has(each) && rooms.size < 100) rooms.set(each, []);
  const people = (each) => { const n = counts.get(each) ?? 0; return n === 1 ? "1 window" : `${n} windows`; };
  $("people").textContent = counts.get(room) ? people(room) : "";
  const list = $("rooms");
  for (const each of rooms.keys()) {
    let button = [...list.querySelectorAll("button")].find((b) => b.firstChild.textContent === each);
    if (!button) {
      button = element("button");
      button.type = "button";
      button.append(element("bdi", "", each), element("span"));
      button.addEventListener("click", () => enter(each));
      const item = element("li");
      item.append(button);
      list.append(item);
    }
    button.setAttribute("aria-current", String(each === room));
    const shown = String(counts.get(each) ?? "");
    if (button.lastChild.textContent !== shown) button.lastChild.textContent = shown;
    button.title = `${each}: ${people(each)}`;
  }
}
function showSecond() {
  const query = new URLSearchParams({ room });
  const own = hello?.server;
  if (own && [...parts.keys()].some((key) => key !== "worker" && key !== `server ${own}`)) query.set("not", own);
  $("second").href = `/?${query}`;
  $("second").title = query.has("not") ? `Open a window that is served by another process than server ${own}` : "Open a second window";
}
function showState(text) {
  const doing = pictureTimer ? "the worker has your picture…" : `connected to server ${hello?.server}`;
  $("state").textContent = hello ? doing : (text ?? "connecting…");
  $("state").classList.toggle("on", Boolean(hello));
  showParts();
  showSecond();
}
function showParts() {
  const own = hello && `server ${hello.server}`;
  const others = [...parts.keys()].filter((key) => key !== own && key !== "worker").sort();
  const order = ["window", ...(own ? [own] : []), "layer", ...others, "worker"];
  const items = order.map((key) => $("parts").querySelector(`[data-part="${key}"]`) ?? newPart(key));
  if (items.some((item, place) => $("parts").children[place] !== item)) $("parts").replaceChildren(...items);
  items.forEach((item, place) => fillPart(item, order[place], parts.get(order[place])));
}
function newPart(key) {
  const item = element("li", "part");
  item.dataset.part = key;
  const facts = element("p");
  facts.append(element("span"), element("span", "more"));
  item.append(element("b", "", { window: "this window", layer: "layer" }[key] ?? key), facts);
  const hue = key === "worker" ? WORKER_HUE : key.startsWith("server") && hueOf(Number(key.slice(7)));
  if (hue) {
    item.classList.add("process");
    item.style.setProperty("--h", hue);
  }
  return item;
}
function fillPart(item, key, facts) {
  const texts = {
    window: () => [hello ? "connected" : "reconnecting"],
    layer: () => [layer, roundTrip === null ? "" : ` · ${roundTrip.toFixed(roundTrip < 10 ? 1 : 0)} ms`],
    worker: () => (facts ? [`pid ${facts.pid}`, ` · ${facts.made} made`] : ["no pulse yet"]),
  };
  const server = () => [`pid ${facts.pid}`, facts.windows === 1 ? " · 1 window" : ` · ${facts.windows} windows`];
  const silent = key === "window" || key === "layer" ? false : !facts || Date.now() - facts.at > 3000;
  const [text, more = ""] = silent && facts ? ["no pulse", ` · pid ${facts.pid}`] : (texts[key] ?? server)();
  const [shown, shownMore] = item.lastChild.children;
  if (shown.textContent !== text) shown.textContent = text;
  if (shownMore.textContent !== more) shownMore.textContent = more;
  item.title = facts?.shown === undefined ? "" : `${facts.said} messages said here, ${facts.shown} lines shown to its windows`;
  if (key === "layer" && roundTrip !== null) item.title = "From this window through the layer and back, for its last message";
  item.classList.toggle("gone", silent);
  item.classList.toggle("waiting", key === "window" && !hello);
}
function light(...keys) {
  for (const key of keys) {
    const item = key && $("parts").querySelector(`[data-part="${key}"]`);
    if (!item) continue;
    item.classList.add("lit");
    setTimeout(() => item.classList.remove("lit"), 150);
  }
}

// What the user does

function complain(text) {
  clearTimeout(troubleTimer);
  $("trouble").firstElementChild.textContent = text;
  $("trouble").hidden = false;
  troubleTimer = setTimeout(() => { $("trouble").hidden = true; }, 8000);
  return false;
}
function say() {
  const text = $("text").value.trim();
  if (!text || !ask({ do: "say", text, ref: ++ref })) return;
  sent.set(ref, performance.now());
  $("text").value = "";
  grow();
  clearTimeout(drafting);
  tellDraft(); // nothing is being written any more
}
function grow() {
  $("text").style.height = "auto";
  $("text").style.height = `${$("text").scrollHeight + 2}px`;
}
function sendPicture(bytes) {
  const most = hello?.limits.image;
  if (most && bytes.byteLength > most) {
    return complain(`That picture has ${(bytes.byteLength / 2 ** 20).toFixed(1)} MB; at most ${most / 2 ** 20} MB are taken.`);
  }
  if (!ask(bytes)) return;
  clearTimeout(pictureTimer);
  pictureTimer = setTimeout(() => { donePicture(); complain("No worker has answered yet."); }, 15000);
  showState();
}
function donePicture() {
  clearTimeout(pictureTimer);
  pictureTimer = 0;
  showState();
}
function sample() {
  const canvas = Object.assign(element("canvas"), { width: 1200, height: 800 });
  const pen = canvas.getContext("2d"), hue = Math.random() * 360;
  const sky = pen.createLinearGradient(0, 0, 0, 800);
  sky.addColorStop(0, `hsl(${hue} 70% 28%)`);
  sky.addColorStop(1, `hsl(${hue + 60} 85% 72%)`);
  pen.fillStyle = sky;
  pen.fillRect(0, 0, 1200, 800);
  pen.fillStyle = `hsl(${hue + 40} 100% 88%)`;
  pen.beginPath();
  pen.arc(200 + Math.random() * 800, 180 + Math.random() * 220, 90, 0, 7);
  pen.fill();
  for (let row = 0; row < 4; row++) {
    pen.fillStyle = `hsl(${hue + 20} ${45 - row * 5}% ${42 - row * 10}%)`;
    const shift = Math.random() * 9, base = 440 + row * 90;
    pen.beginPath();
    pen.moveTo(0, 800);
    for (let x = 0; x <= 1200; x += 10) pen.lineTo(x, base + 50 * Math.sin(x / 170 + shift) + 24 * Math.sin(x / 61 + shift * 3));
    pen.lineTo(1200, 800);
    pen.fill();
  }
  canvas.toBlob(async (blob) => sendPicture(await blob.arrayBuffer()), "image/png");
}

$("composer").addEventListener("submit", (event) => { event.preventDefault(); say(); });
$("text").addEventListener("input", grow);
$("text").addEventListener("input", () => { drafting ||= setTimeout(tellDraft, 100); });
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); say(); }
});
$("name").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); $("text").focus(); }
});
$("name").addEventListener("change", () => {
  name = $("name").value.trim() || name;
  $("name").value = name;
  remember("name", name);
  join();
});
$("new-room").addEventListener("submit", (event) => {
  event.preventDefault();
  enter($("room-name").value);
  $("room-name").value = "";
  $("text").focus();
});
$("picture").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (file) sendPicture(await file.arrayBuffer());
  $("file").value = "";
});
$("sample").addEventListener("click", sample);
$("announce").addEventListener("click", () => $("announcing").showModal());
$("never-mind").addEventListener("click", () => $("announcing").close());
$("announcement").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("announcement-text").value.trim();
  if (!text || !ask({ do: "announce", text })) return;
  $("announcement-text").value = "";
  $("announcing").close();
});
$("trouble").querySelector("button").addEventListener("click", () => { $("trouble").hidden = true; });
$("log").addEventListener("scroll", () => { atEnd = $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 80; });
// A draft, a name or a phone's keyboard takes room from the log: its last line stays in sight.
new ResizeObserver(() => { if (atEnd) $("log").scrollTop = $("log").scrollHeight; }).observe($("log"));
addEventListener("online", () => { if (!socket) connect(); });
setInterval(() => { showParts(); showRooms(); showSecond(); }, 1000); // a part that fell silent shows by the clock alone

for (const each of ["Lobby", "Zürich Süd", room]) if (!rooms.has(each)) rooms.set(each, []);
$("name").value = name;
remember("name", name);
note(room, "Open a second window: another server process answers it, and you can talk across.");
showRoom();
connect();
$("text").focus();
